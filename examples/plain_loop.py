"""A plain PyTorch loop on one fold: the cache's Dataset, torch's DataLoader, and nothing of mfhca-cache's training.

python examples/plain_loop.py CACHE [FEATURE]
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import mfhca_cache

torch.manual_seed(0)
cache = mfhca_cache.open_cache(sys.argv[1])
feature = sys.argv[2] if len(sys.argv) > 2 else cache.encoders()[0]
table, classes = mfhca_cache.labelled_utterances(cache, "four-class", [feature])
number = {name: classes.classes.index(of) for name, of in zip(table["utterance_id"], table["class"], strict=True)}
fold = mfhca_cache.make_folds(table, "strict")[0]

model = nn.GRU(cache.features[feature].shape[-1], 64, batch_first=True)
head = nn.Linear(64, len(classes.classes))
optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)


def step(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    states, _ = model(batch[feature].float())  # stored as float16: (B, frames, width) → (B, frames, 64)
    mask = batch[f"mask_{feature}"].unsqueeze(-1)
    return head((states * mask).sum(1) / mask.sum(1)), torch.tensor([number[name] for name in batch["utterance_id"]])


for epoch in range(5):
    dataset = cache.dataset(feature, fold.train)
    for batch in DataLoader(dataset, batch_size=16, shuffle=True, collate_fn=dataset.collate):
        optimiser.zero_grad()
        loss = cross_entropy(*step(batch))
        loss.backward()
        optimiser.step()
    dataset = cache.dataset(feature, fold.validation)
    with torch.no_grad():
        steps = [step(batch) for batch in DataLoader(dataset, batch_size=64, collate_fn=dataset.collate)]
    right = torch.cat([logits.argmax(1) == labels for logits, labels in steps])
    print(f"epoch {epoch + 1}: training loss {loss:.3f}, {right.float().mean():.1%} of the validation clips right")
