"""Changes of a preset: read from text, applied, named, and part of a run's identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import TrainingError
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.changes import changes_name, parse_changes
from mfhca_cache.training.crossval import begin_run, run_name
from mfhca_cache.training.job import prepare
from mfhca_cache.training.options import PRESETS, Recipe, TrainOptions
from mfhca_cache.training.trainer import epoch_order


def test_changes_reach_the_recipe_and_the_model() -> None:
    options = TrainOptions(
        preset="frozen",
        changes=parse_changes(["rate=8", "channels=16,32,64", "attention-softmax=false", "dropout=0.3", "patience=3"]),
    )
    assert (options.settings.rate, options.settings.channels) == (8, (16, 32, 64))
    assert options.settings.attention_softmax is False
    assert options.settings.dropout == 0.3
    assert options.recipe.patience == 3
    assert options.recipe.batch == PRESETS["frozen"].recipe.batch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate", "expected NAME=VALUE"),
        ("rate=fast", "rate=fast: expected a whole number"),
        ("channels=a,b", "expected whole numbers, as in 16,32,48"),
        ("attention_softmax=maybe", "expected true or false"),
        ("size=3", "setting 'size' cannot be changed; those of the training that can: batch, epochs"),
        ("encoder_width=5", "the cache and the class map decide it"),
        ("rate=0", "rate: got 0; expected a whole number of 1 or more"),
        ("sampling=odd", "sampling: got 'odd'; expected shuffled or balanced"),
        ("optimiser=sgd", "optimiser: got 'sgd'; expected adam or adamw"),
        ("patience=0", "patience: got 0"),
        ("weight_decay=-1", "weight decay: got -1.0"),
        ("learning_rate=nan", "learning rate: got nan"),
    ],
)
def test_changes_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainOptions(changes=parse_changes([text]))


def test_a_setting_is_given_once() -> None:
    with pytest.raises(TrainingError, match="rate: changed twice"):
        TrainOptions(changes=parse_changes(["rate=2", "rate=4"]))
    with pytest.raises(TrainingError, match="epochs: given twice"):
        TrainOptions(epochs=3, changes=parse_changes(["epochs=2"]))


def test_a_model_of_ones_own_has_no_settings_of_ours() -> None:
    options = TrainOptions(model="my:Model", changes=parse_changes(["patience=3"]))
    assert options.recipe.patience == 3
    with pytest.raises(TrainingError, match="'rate' cannot be changed"):
        TrainOptions(model="my:Model", changes=parse_changes(["rate=8"]))


def test_changes_make_another_run_with_another_name(small_cache: Cache, tmp_path: Path) -> None:
    plain, changed = TrainOptions(), TrainOptions(changes=parse_changes(["rate=8", "channels=16,32"]))
    assert changes_name(changed.changes) == "-rate8-channels16.32"
    names = [run_name(small_cache, options, {"spectrogram": "spectrogram"}) for options in (plain, changed)]
    assert names[1] == names[0] + "-rate8-channels16.32"
    begin_run(tmp_path / "run", prepare(small_cache, plain, "cpu"))
    with pytest.raises(TrainingError, match="rate"):
        begin_run(tmp_path / "run", prepare(small_cache, changed, "cpu"))


def test_a_run_of_before_there_were_such_settings_goes_on(small_cache: Cache, tmp_path: Path) -> None:
    job = prepare(small_cache, TrainOptions(), "cpu")
    begin_run(tmp_path / "run", job)
    path = tmp_path / "run" / "run.json"
    before = json.loads(path.read_text())
    del before["options"]["recipe"]["sampling"]
    path.write_text(json.dumps(before))
    begin_run(tmp_path / "run", job)
    balanced = prepare(small_cache, TrainOptions(changes=(("sampling", "balanced"),)), "cpu")
    with pytest.raises(TrainingError, match="sampling"):
        begin_run(tmp_path / "run", balanced)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 5))
def test_an_epoch_takes_as_many_clips_as_there_are(labels: list[int], seed: int) -> None:
    tensor = torch.tensor(labels)
    once = epoch_order(tensor, "shuffled", torch.Generator().manual_seed(seed))
    assert sorted(once.tolist()) == list(range(len(labels)))
    drawn = epoch_order(tensor, "balanced", torch.Generator().manual_seed(seed))
    assert len(drawn) == len(labels) and 0 <= int(drawn.min()) <= int(drawn.max()) < len(labels)
    assert torch.equal(drawn, epoch_order(tensor, "balanced", torch.Generator().manual_seed(seed)))


def test_balanced_sampling_makes_rare_classes_as_likely() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [3] * 10)
    order = epoch_order(labels, "balanced", torch.Generator().manual_seed(0))
    counts = labels[order].bincount(minlength=4)
    assert counts[2] == 0
    for at in (0, 1, 3):
        assert 270 < int(counts[at]) < 400
    assert Recipe().sampling == "shuffled"
