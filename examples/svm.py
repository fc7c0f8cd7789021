"""A support vector machine on features averaged over each utterance, leaving one speaker out at a time.

python examples/svm.py CACHE [FEATURE]
"""

import sys

import numpy as np
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import mfhca_cache

cache = mfhca_cache.open_cache(sys.argv[1])
feature = sys.argv[2] if len(sys.argv) > 2 else cache.encoders()[0]
table, classes = mfhca_cache.labelled_utterances(cache, "four-class", [feature])
table = table.set_index("utterance_id", drop=False)

frames = cache.features[feature].frames  # None where the cache holds means over time
vectors = {}
for item in cache.dataset(feature, table["utterance_id"], by="utterance"):
    values = item[feature].float()  # (clips, frames, width), with layers (clips, L, frames, width)
    if frames is not None:
        mask = mfhca_cache.frame_mask(item[f"valid_{feature}"], frames)  # (clips, frames): which are signal
        values = values.movedim(-2, 1)[mask]  # (signal frames, width)
    vectors[item["utterance_id"]] = values.mean(0).flatten().numpy()

recalls = []
for fold in mfhca_cache.make_folds(table, "strict"):
    train = [*fold.train, *fold.validation]  # nothing is chosen here, so the validation speaker may train, too
    svm = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
    svm.fit(np.stack([vectors[name] for name in train]), table.loc[train, "class"])
    predicted = svm.predict(np.stack([vectors[name] for name in fold.test]))
    recalls.append(recall_score(table.loc[list(fold.test), "class"], predicted, average="macro"))
    print(f"fold {fold.number} ({fold.name}): UA {recalls[-1]:.3f}")
print(f"UA {np.mean(recalls):.3f} ± {np.std(recalls, ddof=1):.3f} over {len(recalls)} speakers")
