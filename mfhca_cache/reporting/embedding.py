"""High-dimensional features as points in a plane, by t-SNE (van der Maaten and Hinton, 2008), the same every time."""

from __future__ import annotations

import numpy as np

from mfhca_cache.errors import TrainingError

#: Fewer points have no neighbourhoods to keep.
LEAST_POINTS = 6
PERPLEXITY = 30.0


def t_sne(features: np.ndarray) -> np.ndarray:
    """Features (N, width) → places in a plane, float32 (N, 2), in no unit: only who is near whom means something.

    Each dimension is standardised over the N points, so that none counts more for its unit; those that never change are
    left out. The perplexity is 30, or a third of the other points where there are fewer than 91.

    Raises:
        TrainingError: fewer than six points, or features that are not finite or all the same.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(features) < LEAST_POINTS:
        raise TrainingError(f"t-SNE needs {LEAST_POINTS} utterances or more; got {len(features)}")
    values = features.astype(np.float64)
    if not np.isfinite(values).all():
        raise TrainingError("t-SNE needs finite features; got NaN or infinite ones")
    spread = values.std(0)
    varies = spread > 1e-9 * (1 + np.abs(values).max())
    if not varies.any():
        raise TrainingError("t-SNE needs features that differ; got the same for every utterance")
    values = (values[:, varies] - values[:, varies].mean(0)) / spread[varies]
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca" if values.shape[1] > 1 else "random", random_state=0, n_jobs=1)
    # Sums that several threads share come in another order each time, and t-SNE makes much of a last digit.
    with threadpool_limits(1):
        return np.asarray(model.fit_transform(values.astype(np.float32)), dtype=np.float32)
