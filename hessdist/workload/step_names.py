"""Reading the training step from the name of a checkpoint, which may have several numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from hessdist.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".t7")
REMEDY = (
    "rename it, or set checkpoints.pattern to a regular expression such as 'step_(?P<step>[0-9]+)'"
)
_LARGEST = 2**63 - 1
_DIGITS = 19  # of the largest number

# Keywords, longer words first. Letters that end with one count too ("global_step",
# "timestep"), but "ep" only as a whole word, because many words end with these letters.
_KINDS = {"steps": "step", "step": "step"} | dict.fromkeys(
    ("iterations", "iteration", "iters", "iter", "itr", "updates", "update"), "iteration"
)
_KINDS |= {"epochs": "epoch", "epoch": "epoch", "ep": "epoch"}
# Words before a keyword that make it a setting, and words that only end like one.
_SETTINGS = {
    *("warmup", "max", "total", "decay", "grad", "accum", "accumulation", "sampling"),
    *("inference", "diffusion", "per", "every", "multi", "sub", "foot", "one"),
}
# Words whose number is a score, a setting, a size or a count of something else.
_OTHER_NUMBERS = {
    *("acc", "accuracy", "loss", "lr", "err", "error", "f1", "auc", "map", "iou", "miou", "psnr"),
    *("ssim", "bleu", "wer", "cer", "ppl", "perplexity", "fid", "score", "top", "top1", "top5"),
    *("dice", "mae"),
    *("mse", "rmse", "reward", "metric", "val", "valid", "test", "wd", "decay", "momentum"),
    *("dropout", "drop", "alpha", "beta", "gamma", "lambda", "eps", "temp", "temperature", "tau"),
    *("seed", "bs", "batch", "batchsize", "size", "img", "image", "res", "resolution", "dim"),
    *("width", "depth", "layers", "hidden", "heads", "classes", "patch", "crop", "length", "len"),
    *("seq", "rank", "world", "gpu", "gpus", "worker", "workers", "fold", "run", "trial", "exp"),
    *("version", "ver", "v", "rev", "part", "shard", "node", "job", "task", "id", "split"),
    *("precision", "recall", "r2", "bits", "rate", "date", "time"),
}
_MULTIPLES = {"k": 3, "thousand": 3, "m": 6, "mil": 6, "million": 6, "b": 9, "g": 9, "billion": 9}
_WORD = re.compile(r"[a-z]+")
_DATE = re.compile(
    r"(?<![0-9])(?:19|20)[0-9]{2}([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12][0-9]|3[01])"
    r"(?:[t_\-\s]{1,2}[0-2][0-9]([-_.:]?)[0-5][0-9](?:\2[0-5][0-9])?)?(?![0-9])"
)
_SHARD = re.compile(r"(?<![0-9])[0-9]+[-_]?of[-_]?[0-9]+(?![0-9])")


class BeyondError(CheckpointError):
    """The step in a name is no number of 64 bits, so that this file alone is set aside."""


@dataclass(frozen=True)
class NamedStep:
    """A number in a name, and the quantity that it counts."""

    step: int
    kind: str  # "step", "iteration", "epoch" or "number"


@dataclass(frozen=True)
class _Number:
    """A number in a name, as text, with its position."""

    text: str
    begin: int
    end: int


def stem_of(name: str) -> str:
    """Remove the suffixes of a checkpoint's name: "checkpoint_0010" of a ".pth.tar"."""
    while name.lower().endswith(SUFFIXES) and "." in name[1:]:
        name = name[: name.rindex(".")]
    return name


def read_step(name: str) -> NamedStep | None:
    """Read the step from the name of a file or folder.

    Args:
        name: The name. The step is the number after "step", otherwise the one after "iteration" or
            "iter", otherwise the one after "epoch", otherwise the only separate number.

    Returns:
        The step; None if there is none, or if the name is not that of a model.

    Raises:
        BeyondError: The step is no number of 64 bits.
        CheckpointError: The step is not clear, or no whole number.
    """
    number_pattern = (
        r"(?<![0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+(?:\.[0-9]+)*)(?:e[+-]?[0-9]+)?"
    )
    text = stem_of(name).lower()
    if _has_no_model(text):
        return None
    numbers = [_Number(match[0], *match.span()) for match in re.finditer(number_pattern, text)]
    numbers = [whole for number in numbers for whole in _without_exponent_of_word(text, number)]
    by_kind: dict[str, list[_Number]] = {}
    for kind, number in _after_keywords(name, text, numbers):
        by_kind.setdefault(kind, []).append(number)
    if _is_shard(text, [number for group in by_kind.values() for number in group]):
        return None
    for kind in ("step", "iteration", "epoch"):
        if kind in by_kind:
            return NamedStep(_common_value(name, text, by_kind[kind]), kind)
    separate = list(_separate(name, text, numbers))
    return NamedStep(_common_value(name, text, separate), "number") if separate else None


def match_step(name: str, pattern: str) -> int | None:
    """Read the step from a name by a pattern of the user.

    Args:
        name: The name, with its suffixes.
        pattern: A regular expression with a group "step", which is searched in the name.

    Returns:
        The step; None if the pattern does not match.

    Raises:
        BeyondError: The group matches a number beyond 64 bits.
        CheckpointError: The group does not match a whole number.
    """
    match = re.search(pattern, name)
    if match is None:
        return None
    digits = (match["step"] or "").replace(",", "").replace("_", "")
    is_number = re.fullmatch("[0-9]+", digits) is not None
    if not is_number or int(digits) > _LARGEST:
        raise (BeyondError if is_number else CheckpointError)(
            f"the group 'step' of checkpoints.pattern matches {match['step']!r} in {name!r}",
            "it must match a whole number below 2^63, in digits",
        )
    return int(digits)


def _has_no_model(text: str) -> bool:
    phrases = (
        r"(^|[^a-z])(training[_-]args|trainer[_-]state|random[_-]states?|replay[_-]buffer|"
        r"mp[_-]rank[_-]\d+)([^a-z]|$)"
    )
    parts = {
        *("optimizer", "optimizers", "optimiser", "optim", "scheduler", "schedulers", "sched"),
        *("scaler", "rng", "tokenizer", "metrics", "history", "config"),
    }
    optimizers = {"sgd", "adam", "adamw", "rmsprop", "adagrad", "lion", "lamb", "lars", "lbfgs"}
    if re.search(phrases, text):
        return True
    words = _WORD.findall(text)
    if {"and", "with"} & set(words):  # model_and_optimizer_10.pt has a model
        return False
    # "optimizer_adam" is a setting of the run, not the content of the file.
    pairs = zip(words, [*words[1:], ""], strict=False)
    return any(word in parts and after not in optimizers for word, after in pairs)


def _without_exponent_of_word(text: str, number: _Number) -> Iterator[_Number]:
    """Return a number, without "e10" if this begins a word, as in "12e10x"."""
    if "e" in number.text and number.end < len(text) and text[number.end].isalpha():
        plain = number.text[: number.text.index("e")]
        yield _Number(plain, number.begin, number.begin + len(plain))
    else:
        yield number


def _after_keywords(name: str, text: str, numbers: list[_Number]) -> Iterator[tuple[str, _Number]]:
    """Iterate over numbers of keywords, which are after or before them ("1000_steps")."""
    at = {number.begin: number for number in numbers}
    ends = {number.end: number for number in numbers}
    claimed: set[_Number] = set()
    without: list[tuple[str, re.Match[str], str]] = []
    for word in _WORD.finditer(text):
        keyword = _keyword(text, word)
        if keyword is None:
            continue
        number = _number_after(text, word.end(), at)
        if number is None:
            without.append((_KINDS[keyword], word, keyword))
            continue
        claimed.add(number)
        yield _KINDS[keyword], number
        before = _number_before(text, word, keyword, ends)
        if before is None or before in claimed or not keyword.endswith("s"):
            continue
        if before.text.isdigit() and _is_free(text, before):
            raise _competing(name, [before, number])  # "50_steps_10"
    for kind, word, keyword in without:
        number = _number_before(text, word, keyword, ends)
        if number is not None and number not in claimed and _is_free(text, number):
            claimed.add(number)
            yield kind, number


def _keyword(text: str, word: re.Match[str]) -> str | None:
    letters = word[0]
    keyword = next(
        (k for k in _KINDS if (letters == k if k == "ep" else letters.endswith(k))), None
    )
    if keyword is None:
        return None
    before = letters.removesuffix(keyword)
    if not before:
        previous = re.search(r"([a-z]+)[_\-\s]?$", text[: word.start()])
        before = previous[1] if previous else ""
    return None if before in _SETTINGS else keyword


def _number_after(text: str, place: int, at: dict[int, _Number]) -> _Number | None:
    filler = re.compile(r"[_\-\s]?(?:number|num|no|nr|idx|index|count)(?![a-z])").match(text, place)
    place = filler.end() if filler else place
    gap = re.compile(r"[\s_\-=:.#(\[]{0,3}").match(text, place)
    assert gap is not None  # it may be empty
    if len(gap[0]) > 1 and gap[0].endswith("-"):
        return None  # a negative number, as in "step=-1"
    return at.get(gap.end())


def _number_before(
    text: str, word: re.Match[str], keyword: str, ends: dict[int, _Number]
) -> _Number | None:
    """Return the number before a keyword, perhaps with a multiple: "1000_steps", "10ksteps"."""
    between = word[0].removesuffix(keyword)
    if between and between not in _MULTIPLES and between not in {"train", "training", "global"}:
        return None
    place = word.start()
    if between in _MULTIPLES:
        return ends.get(place)
    while place > 0 and text[place - 1] in "_- " and word.start() - place < 2:
        place -= 1
    multiple = re.search(r"(?<=[0-9])(k|m|b|g)$", text[:place])
    return ends.get(multiple.start() if multiple else place)


def _is_free(text: str, number: _Number) -> bool:
    """Return whether a number is not in a date, and not that of another word before it."""
    before = text[: number.begin]
    if before and before[-1].isalpha():
        return False
    word = re.search(r"(f1|r2|top[15]|[a-z]+)[\s_\-=:.#(\[]{0,3}$", before)
    # Words that end like a keyword are settings, such as "warmup_steps_100".
    keywords = tuple(keyword for keyword in _KINDS if keyword != "ep")
    if word and (word[1] in _OTHER_NUMBERS or word[1].endswith(keywords)):
        return False
    inside = (match.span() for match in (*_DATE.finditer(text), *_SHARD.finditer(text)))
    return not any(begin <= number.begin < end for begin, end in inside)


def _is_shard(text: str, claimed: list[_Number]) -> bool:
    """Return whether a name is that of one of several parts, unlike "epoch_10_of_100"."""
    starts = {number.begin for number in claimed}
    return any(match.start() not in starts for match in _SHARD.finditer(text))


def _separate(name: str, text: str, numbers: list[_Number]) -> Iterator[_Number]:
    """Iterate over separate numbers, and numbers after a word for a checkpoint."""
    checkpoint = ("checkpoint", "ckpt", "ckp", "chkpt")  # such as "checkpoint5" of fairseq
    # Names of networks and data sets that include a number.
    families = {
        "resnet": {"18", "20", "32", "34", "44", "50", "56", "101", "110", "152"},
        "vgg": {"11", "13", "16", "19"},
        "densenet": {"121", "161", "169", "201"},
        "cifar": {"10", "100"},
    }
    for number in numbers:
        before, after = text[: number.begin], text[number.end : number.end + 1]
        word = re.search(r"([a-z]+)[\s_\-]?$", before)
        is_glued = before[-1:].isalpha() and not before.endswith(checkpoint)
        is_plain = re.fullmatch(r"[0-9]+|[0-9]{1,3}(,[0-9]{3})+", number.text)
        of_checkpoint = before.rstrip("_-=. ").endswith(checkpoint)
        if of_checkpoint and after and after in "kmb" and not is_glued:
            tail = text[number.end + 1 : number.end + 2]
            if not tail.isalnum():  # "checkpoint-100k"
                yield number
                continue
        if is_glued or after.isalpha() or not is_plain:
            continue
        if re.search(r"[a-z0-9][_=:(\[]-$|--$", before):
            continue  # a negative number
        if not before.endswith(checkpoint) and not _is_free(text, number):
            continue
        if word and number.text in families.get(word[1], ()):
            raise CheckpointError(
                f"{name!r} may be of step {number.text}, or the number is a part of "
                f"'{word[1]} {number.text}'",
                REMEDY,
            )
        yield number


def _common_value(name: str, text: str, numbers: list[_Number]) -> int:
    """Return the value of numbers that must all be equal."""
    values = {_value(name, text, number) for number in numbers}
    if len(values) > 1:
        raise _competing(name, numbers)
    return values.pop()


def _competing(name: str, numbers: list[_Number]) -> CheckpointError:
    listed = " and ".join(number.text for number in numbers)
    return CheckpointError(f"the step in the name {name!r} is not clear: {listed} compete", REMEDY)


def _value(name: str, text: str, number: _Number) -> int:
    """Convert a number with thousands, an exponent, or a multiple ("5k", "1.5M") to an integer."""
    after = text[number.end :]
    multiple = _multiple(after)
    mantissa, _, exponent = number.text.replace(",", "").partition("e")
    if _is_odd(number.text, after, multiple):
        raise CheckpointError(
            f"the step in the name {name!r} is not clear: {number.text + after[:8]!r}", REMEDY
        )
    power = int(exponent or 0) + _MULTIPLES.get(multiple, 0)
    digits = len(mantissa.partition(".")[0].lstrip("0"))
    if not -_DIGITS <= power <= _DIGITS or digits + power > _DIGITS:
        raise _beyond(name)
    value = Decimal(mantissa).scaleb(power)
    if value > _LARGEST:
        raise _beyond(name)
    if value != value.to_integral_value():
        raise CheckpointError(
            f"the step in the name {name!r} is {number.text}, which is no whole number", REMEDY
        )
    return int(value)


def _multiple(after: str) -> str:
    """Return the multiple at the beginning of the text after a number; empty if there is none."""
    spelt = re.match(r"[\s_\-]?(thousand|million|billion)(?![a-z])", after)
    if spelt:
        return spelt[1]
    word = _WORD.match(after)
    if word is None or word[0] in _KINDS:
        return ""
    # In "10ksteps" the keyword follows the multiple.
    return next((m for m in _MULTIPLES if word[0].removeprefix(m) in {"", *_KINDS}), "")


def _is_odd(number: str, after: str, multiple: str) -> bool:
    """Return whether the text after a number makes its value doubtful."""
    word = _WORD.match(after)
    usual = {"st", "nd", "rd", "th", *_KINDS}  # "7th", "10ep"
    if word and len(word[0]) <= 2 and not multiple and word[0] not in usual:
        is_next = re.match(r"(v|r|s|f)[0-9]|ep[0-9=_\-]", after)  # "step10v2", "step10s3"
        if not is_next:
            return True
    in_groups = re.fullmatch(r"[1-9][0-9]{0,2}", number) and re.match(r"_[0-9]{3}(?![0-9])", after)
    if in_groups or re.match(r",[0-9]|e[+-]", after) or number.count(".") > 1:
        return True
    # "2.000" is two or two thousand, according to the country.
    return bool(re.fullmatch(r"[1-9][0-9]{0,2}\.[0-9]{3}", number)) and not multiple


def _beyond(name: str) -> BeyondError:
    return BeyondError(f"the step in the name {name!r} is no number of 64 bits", REMEDY)
