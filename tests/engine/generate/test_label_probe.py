"""The label probe against plain ridge regression that leaves each example out."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.label_probe import LabelProbe, text_features
from pocketllm.engine.streamed.model import LanguageModel


def examples(count: int, *, apart: float = 1.5, width: int = 24) -> tuple[torch.Tensor, list[str]]:
    """Features of two labels whose means are this far apart."""
    generator = torch.Generator().manual_seed(count)
    labels = ["tea" if number % 2 else "rain" for number in range(count)]
    features = torch.randn(count, width, generator=generator)
    features[:, 0] += torch.tensor([apart * (label == "tea") for label in labels])
    return features, labels


def test_accuracy_and_threshold_are_those_of_leaving_each_example_out() -> None:
    found_features, labels = examples(40, apart=3)
    probe = LabelProbe(found_features, labels)
    x = probe._standard(found_features)
    targets = torch.tensor([[label == "rain", label == "tea"] for label in labels]).double()
    right = targets.argmax(1)

    def left_out(penalty: float) -> torch.Tensor:
        scores = torch.empty_like(targets)
        for out in range(len(x)):
            kept = [number for number in range(len(x)) if number != out]
            mean_x, mean_y = x[kept].mean(0), targets[kept].mean(0)
            centred = x[kept] - mean_x
            gram = centred.T @ centred + penalty * torch.eye(x.shape[1])
            scores[out] = mean_y + (x[out] - mean_x) @ torch.linalg.solve(gram, centred.T @ (targets[kept] - mean_y))
        return scores

    mean = float(x.square().sum() / len(x))
    found = [left_out(share * mean) for share in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
    pairs = itertools.product(found, (1.0, 2.0, 4.0, 8.0, 16.0))
    scores, scale = min(pairs, key=lambda pair: float(cross_entropy(pair[1] * pair[0], right)))
    assert 0.7 < probe.accuracy < 1
    assert probe.accuracy == pytest.approx(float((scores.argmax(1) == right).double().mean()))
    assert probe.threshold == pytest.approx(float((scale * scores).softmax(-1).amax(1).quantile(0.1)))


def test_label_of_a_new_text_and_how_sure_it_is() -> None:
    probe = LabelProbe(*examples(80, apart=4))
    others, labels = examples(50, apart=4)
    said = [probe.probabilities(one) for one in others]
    assert all(sum(one.values()) == pytest.approx(1) for one in said)
    right = [max(one, key=one.__getitem__) == label for one, label in zip(said, labels, strict=True)]
    assert sum(right) >= 45 and probe.accuracy > 0.9
    unsure = LabelProbe(*examples(80, apart=0))
    assert unsure.accuracy < 0.7
    assert max(unsure.probabilities(others[0]).values()) < max(said[0].values())


def test_threshold_sorts_out_most_texts_of_no_label_and_few_others() -> None:
    probe = LabelProbe(*examples(80, apart=8))
    others, _ = examples(50, apart=8)
    below = [max(probe.probabilities(one).values()) < probe.threshold for one in others]
    assert sum(below) <= 10
    between, _ = examples(50, apart=0)
    between[:, 0] += 4
    assert sum(max(probe.probabilities(one).values()) < probe.threshold for one in between) >= 40


@pytest.mark.parametrize("count", [6, 7])
def test_probe_of_few_or_equal_examples(count: int) -> None:
    features, labels = examples(count)
    features[:] = features[0]
    probe = LabelProbe(features, labels)
    assert all(0 <= value <= 1 for value in probe.probabilities(features[0]).values())


def test_features_ignore_padding(tiny: ModelFolder) -> None:
    model = LanguageModel(tiny, dtype=torch.float32)
    texts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [3]]
    together = list(text_features(model, texts, [9, 3]))
    for text, found in zip(texts, together, strict=True):
        (alone,) = text_features(model, [text], [9, 3])
        assert len(alone) == 2 * model.network.config.hidden_size
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
