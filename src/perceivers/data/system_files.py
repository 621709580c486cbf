"""Files and folders that systems leave between data, and that are no data: the one list of them."""

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
    """Tell whether a file, by its name without folders, is hidden or a system's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_system_folder(name: str) -> bool:
    """Tell whether a folder, by its own name, is hidden, private or a system's."""
    return name.startswith((".", "__")) or name.lower() in SYSTEM_NAMES


def is_system_member(path: str) -> bool:
    """Tell whether a member of an archive is hidden, or lies in a system's folder.

    Folders that are merely hidden count as data there: somebody has packed them.

    Args:
        path: In the archive, with forward slashes.
    """
    *folders, name = path.split("/")
    return is_system_file(name) or any(folder.lower() in SYSTEM_NAMES for folder in folders)
