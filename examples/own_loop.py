"""Masked autoencoding in a loop of your own: plain PyTorch around our model, mask and loss."""

import sys

import torch
from sklearn.datasets import load_digits

import perceivers as pv

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
pixels, _ = load_digits(return_X_y=True)
images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16  # 0..1
spec = pv.Image(8, 8, 1, mean=(float(images.mean()),), std=(float(images.std()),))
model = pv.create_model("hip_nano", inputs={"image": spec})
tables = [p for name, p in model.named_parameters() if name.endswith(".table")]
others = [p for name, p in model.named_parameters() if not name.endswith(".table")]
# Learned positions start as noise: they need larger steps and no weight decay.
groups = [{"params": others}, {"params": tables, "lr": 2e-2, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
generator = torch.Generator().manual_seed(0)

for step in range(steps):
    batch = images[torch.randint(len(images), (64,), generator=generator)]
    plan = pv.draw_mask_plan(model.layout(), len(batch), ratio=0.75, generator=generator)
    losses = pv.mae_losses(model, {"image": batch}, plan)
    losses.total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0 or step == steps - 1:
        print(f"step {step}: loss {losses.total.item():.4f}")

model.save_pretrained("digits_mae", overwrite=True)
