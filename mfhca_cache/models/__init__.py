"""Models: tensors in, logits out."""
