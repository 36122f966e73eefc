"""Train a bidirectional GRU that tells the language of a short text, and export it with the older PyTorch exporter.

Idea: the `django` package ships the same few hundred interface messages in many languages.  A message's first 48
characters, lower case and without markup, digits and punctuation, are a sample; its catalogue's language is the
label.  All 16 languages use the Latin alphabet and several are close relatives (Czech and Slovak, Spanish, Catalan
and Portuguese, Danish and Swedish).

Split: by the English message, and messages whose English texts start with the same two words go to the same side, so
a held-out text is no translation or near copy of a training text's message.

Data: the `.mo` catalogues inside the `django` package, by Django's translators, under BSD-3-Clause.

Run: python models/train_langid_gru.py
"""

import gettext
import re
from pathlib import Path

import django
import torch
from common import HELD_OUT, Split, fit, publish, seed_everything
from torch import Tensor, nn

NAME = "langid_gru"
EPOCHS = 20
WINDOW = 48
LONGEST = 160
SHORTEST = 16
LANGUAGES = ["ca", "cs", "da", "de", "es", "et", "fi", "fr", "hu", "it", "nl", "pl", "pt", "ro", "sk", "sv"]
PADDING, UNKNOWN, FIRST_LETTER = 0, 1, 2
NOT_TEXT = re.compile(r"%\([^)]*\)[a-z]|%[a-z]|\{[^}]*\}|<[^>]*>|&\w+;|[^\w'’]|[\d_]")

Sample = tuple[int, str]


def clean(text: str) -> str:
    """Return the words of `text` in lower case, without placeholders, markup, digits and punctuation."""
    return " ".join(NOT_TEXT.sub(" ", text).lower().split())


def read_messages() -> dict[str, set[Sample]]:
    """Return Django's messages: first two English words -> (language number, translation) pairs."""
    groups: dict[str, set[Sample]] = {}
    for number, language in enumerate(LANGUAGES):
        for path in sorted(Path(django.__file__).parent.glob(f"**/locale/{language}/LC_MESSAGES/django.mo")):
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog
            for key, translation in catalog.items():
                english = clean(key if isinstance(key, str) else key[0])
                text = clean(translation)[:LONGEST]
                if key and english and len(text) >= SHORTEST and text != english[:LONGEST]:
                    groups.setdefault(" ".join(english.split()[:2]), set()).add((number, text))
    return groups


def divide(groups: dict[str, set[Sample]]) -> tuple[list[Sample], list[Sample]]:
    """Return training and held-out samples, whole groups at a time and no text on both sides."""
    keys = sorted(groups)
    held: set[Sample] = set()
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0)).tolist()
    used = 0
    while len(held) < HELD_OUT:
        held |= groups[keys[order[used]]]
        used += 1
    train = set().union(*(groups[keys[place]] for place in order[used:]))
    seen = {text for _, text in train}
    return sorted(train), sorted(sample for sample in held if sample[1] not in seen)


def encode(samples: list[Sample], alphabet: str, length: int) -> tuple[Tensor, Tensor]:
    """Return character numbers, padded at the end to `length`, and language numbers."""
    codes = {letter: number for number, letter in enumerate(alphabet, start=FIRST_LETTER)}
    texts = torch.full((len(samples), length), PADDING)
    for row, (_, text) in enumerate(samples):
        numbers = [codes.get(letter, UNKNOWN) for letter in text[:length]]
        texts[row, : len(numbers)] = torch.tensor(numbers)
    return texts, torch.tensor([language for language, _ in samples])


def random_windows(texts: Tensor) -> Tensor:
    """Cut a random window out of each text, as augmentation; texts shorter than a window stay whole."""
    room = ((texts != PADDING).sum(dim=1) - WINDOW).clamp(min=0)
    start = (torch.rand(len(texts)) * (room + 1)).long()
    return texts.gather(1, start[:, None] + torch.arange(WINDOW))


class LanguageGru(nn.Module):
    """Character embedding, two bidirectional GRU layers, maximum over time, linear head."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 32)
        self.gru = nn.GRU(32, 64, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)
        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(128, len(LANGUAGES)))

    def forward(self, text: Tensor) -> Tensor:
        """Return one logit per language for character numbers shaped (batch, WINDOW)."""
        states, _ = self.gru(self.embed(text))
        return self.classify(states.amax(dim=1))


def main() -> None:
    """Train, export and measure."""
    seed_everything(0)
    train, held = divide(read_messages())
    alphabet = "".join(sorted({letter for _, text in train for letter in text}))
    split = Split(*encode(train, alphabet, LONGEST), *encode(held, alphabet, WINDOW))
    print(f"{len(train)} training texts, {len(held)} held-out texts, {len(alphabet)} characters")
    model = LanguageGru(FIRST_LETTER + len(alphabet))
    fit(model, split, random_windows, EPOCHS, peak_rate=4e-3)
    publish(model, split, NAME, "text", dynamo=False)


if __name__ == "__main__":
    main()
