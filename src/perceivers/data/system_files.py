"""Names of files and folders that operating systems create next to data, to be ignored."""

# In lower case: network drives, Linux, Windows, macOS and Jupyter.
SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("lost+found", ".nfs", ".trash"),
        *("$recycle.bin", "recycler", "system volume information"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("__macosx", ".ds_store", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd"),
        *(".ipynb_checkpoints", "__pycache__"),
    }
)


def is_system_file(name: str) -> bool:
    """Return whether a file is hidden or a system file, by its name without folders."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden, private or a system folder, by its own name."""
    return name.startswith((".", "__")) or name.lower() in SYSTEM_NAMES


def is_system_member(path: str) -> bool:
    """Return whether a member of an archive is hidden, or lies in a system folder.

    Other hidden folders count as data, because they were packed deliberately.

    Args:
        path: Path in the archive, with forward slashes.
    """
    *folders, name = path.split("/")
    return is_system_file(name) or any(folder.lower() in SYSTEM_NAMES for folder in folders)
