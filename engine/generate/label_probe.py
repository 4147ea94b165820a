"""A text's label by a linear probe: ridge regression on its last hidden states.

The features are their mean over the text, and the one behind the question what the text is: alone, the first knows
more of who has written, the second more of what was meant.

The features X (n, width) of n examples are standardised, and their targets Y (n, labels), 1 for an example's label
and 0 for the others, are centred. With K = X X^T, the examples' scores are H Y for H = K (K + penalty I)^-1 + 1/n.
Without example i in the fit its score is y_i - (y_i - (H Y)_i) / (1 - H_ii): leave-one-out in closed form (PRESS;
Allen 1974). So the penalty, and the scale by which scores become probabilities, are those with which the examples say
each other's labels best, and how often they do is the probe's accuracy.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.streamed.model import LanguageModel

#: Asks what a text is.
QUESTION = "\nThis is"
#: The first tokens of a text that count, and the texts that pass through the model together.
MAX_TOKENS = 256
_TOGETHER = 8
#: Lengths are multiples of it: oneDNN keeps code for each shape in bf16, 140 MB after two hundred texts.
_STEP = 32
#: Of a penalty, over the mean of K's diagonal; and of a scale.
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)


@torch.inference_mode()
def text_features(model: LanguageModel, texts: Sequence[Sequence[int]], question: Sequence[int]) -> list[torch.Tensor]:
    """Each text's features, (2 * width,) fp32. texts, question: their tokens, at least one each."""
    found: dict[int, torch.Tensor] = {}
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # which takes little padding
    for start in range(0, len(texts), _TOGETHER):
        numbers = by_length[start : start + _TOGETHER]
        some = [list(texts[number][:MAX_TOKENS]) for number in numbers]
        width = -(-(max(map(len, some)) + len(question)) // _STEP) * _STEP
        padded = torch.tensor([[*text, *question] + [0] * (width - len(text) - len(question)) for text in some])
        hidden = model.hidden(Batch(inputs=padded, targets=padded)).float()  # no token sees the padding behind it
        for number, text, states in zip(numbers, some, hidden, strict=True):
            found[number] = torch.cat((states[: len(text)].mean(0), states[len(text) + len(question) - 1]))
    return [found[number] for number in range(len(texts))]


class LabelProbe:
    """Tells which of several labels a text has."""

    def __init__(self, features: torch.Tensor, labels: Sequence[str]) -> None:
        """features: (n, 2 * width) of the examples; labels: theirs, two different ones at least."""
        self._labels = sorted(set(labels))
        right = torch.tensor([self._labels.index(label) for label in labels])
        self._centre: torch.Tensor = features.mean(0)
        self._spread: torch.Tensor = features.std(0) + 1e-6
        x = self._standard(features)
        targets = torch.nn.functional.one_hot(right, len(self._labels)).double()
        self._shares = targets.mean(0)
        values, vectors = torch.linalg.eigh(x @ x.T)
        values = values.clamp(min=0)
        turned = vectors.T @ (targets - self._shares)

        def left_out(penalty: float) -> torch.Tensor:
            hat = vectors * (values / (values + penalty))
            residual = targets - self._shares - hat @ turned
            leverage = (hat * vectors).sum(1) + 1 / len(x)
            scores: torch.Tensor = targets - residual / (1 - leverage).clamp(min=1e-6)[:, None]
            return scores

        def loss(penalty: float, scale: float) -> float:
            return float(torch.nn.functional.cross_entropy(scale * left_out(penalty), right))

        penalties = [share * float(values.mean()) for share in _PENALTIES]
        penalty, self._scale = min(product(penalties, _SCALES), key=lambda pair: loss(*pair))
        self._weights = x.T @ (vectors / (values + penalty)) @ turned
        scores = left_out(penalty)
        #: How often the label of an example is right when the other examples say it.
        self.accuracy = float((scores.argmax(1) == right).double().mean())
        #: Of the likeliest label: nine in ten examples are above this probability when the others say it.
        self.threshold = float((self._scale * scores).softmax(-1).amax(1).quantile(0.1))

    def probabilities(self, features: torch.Tensor) -> Mapping[str, float]:
        """The probability of each label of a text. features: (2 * width,)."""
        scores = self._shares + self._standard(features) @ self._weights
        return dict(zip(self._labels, (self._scale * scores).softmax(-1).tolist(), strict=True))

    def _standard(self, features: torch.Tensor) -> torch.Tensor:
        standard: torch.Tensor = ((features - self._centre) / self._spread).double()
        return standard
