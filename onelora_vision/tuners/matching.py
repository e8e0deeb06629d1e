"""Which modules a PEFT config targets, by PEFT's rules but in bounded time.

An adapter file's config may come from anyone, and some short expressions take Python's ``re``, which PEFT uses,
forever. RE2 reads each character of a name once for any expression; syntax that it does not support (lookaround,
backreferences) is refused. `Targets` answers for one config; `resolve` rewrites a config so that PEFT only sees the
matching names.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import re2
from peft import PeftConfig
from peft.tuners.tuners_utils import _ExcludedModule
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.constants import DUMMY_TARGET_MODULES

from onelora_vision.errors import InputError, one_line

MAX_EXPRESSION = 20_000  # characters, in all the expressions of a field
MAX_NAMES = 4096  # entries in a list of names
MAX_VALUES = 256  # different numbers in rank_pattern or alpha_pattern
_MAX_PROGRAM = 20_000  # RE2 instructions; the time per character is at most proportional to their number
_MAX_LAYERS_PROGRAM = 1000  # RE2 can read groups only with its slower method
_NAME = re.compile(r"[\w\-]+(?:\.[\w\-]+)*")


def _options(memory: int) -> re2.Options:
    options = re2.Options()
    options.max_mem, options.log_errors = memory, False
    return options


_OPTIONS = _options(64 << 20)  # with less, RE2 falls back to a method that is 50 times slower
_LAYERS_OPTIONS = _options(1 << 20)


class Expressions:
    """Expressions from a file, all matched at once against whole names.

    Raises:
        InputError: one is not a valid expression, is too long, or uses syntax that RE2 does not support.
    """

    def __init__(self, patterns: Sequence[str], what: str, frame: str = "{}"):
        length = sum(map(len, patterns))
        if length > MAX_EXPRESSION:
            raise InputError(f"{what}: {length:,} characters of expressions, more than {MAX_EXPRESSION:,}")
        framed = [frame.format(pattern) for pattern in patterns]
        _check_programs(patterns, framed, what, _MAX_PROGRAM)
        self._set = re2.Set.FullMatchSet(_OPTIONS)
        for pattern in framed:
            self._set.Add(pattern)
        self._set.Compile()

    def first(self, name: str) -> int | None:
        """The index of the first expression that matches."""
        return min(self._set.Match(name) or [], default=None)


def _check_programs(patterns: Sequence[str], framed: Sequence[str], what: str, limit: int) -> None:
    size = 0
    for pattern, text in zip(patterns, framed):
        shown = one_line(repr(pattern), 60)
        try:
            size += re2.compile(text, _OPTIONS).programsize
        except (re2.error, UnicodeError) as error:
            reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else error
            raise InputError(
                f"{what}: {shown} is not an expression that can be read safely ({one_line(reason, 80)}); give module names, or "
                "an expression without lookaround and references back"
            ) from error
        if size > limit:
            re2.purge()  # otherwise the library caches it
            raise InputError(f"{what}: the expression {shown} is too large; give module names")


_RANK_FRAME = r"(.*\.)?({})"  # as in `peft.utils.other.get_pattern_key`
_LAYERS_FRAME = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
_FIRST_NUMBER = r".*?\.[^.]*\.(?P<idx>\d+)\."


class Targets:
    """Which modules a config targets, ignoring ``modules_to_save``: PEFT's `check_target_module_exists` with RE2.

    Raises:
        InputError: an expression is invalid (see `Expressions`).
    """

    def __init__(self, config: PeftConfig):
        self._excluded = _Names(getattr(config, "exclude_modules", None), "exclude_modules")
        self._targets = _Names(config.target_modules, "target_modules")
        layers = getattr(config, "layers_to_transform", None)
        self._layers = {layers} if isinstance(layers, int) else set(layers or ())
        self._layers_patterns = layers_expressions(getattr(config, "layers_pattern", None)) if self._layers else []

    def check(self, name: str) -> bool | _ExcludedModule:
        """Whether the module with this full name is targeted; for an excluded one, PEFT's falsy marker object."""
        if name in self._excluded:
            return _ExcludedModule()
        if not self._layers or self._targets.is_expression or self._targets.has_exactly(name):
            return name in self._targets
        return name in self._targets and self._layer_of(name) in self._layers

    def is_excluded(self, name: str) -> bool:
        """Whether ``exclude_modules`` matches the module."""
        return name in self._excluded

    def _layer_of(self, name: str) -> int | None:
        found = next((match for pattern in self._layers_patterns if (match := pattern.match(name))), None)
        number = found and found["idx"]
        return int(number) if number else None


class _Names:
    """A set of names, which also match every longer dotted name that ends with one of them, or one expression."""

    def __init__(self, value: str | Iterable[str] | None, what: str):
        self.is_expression = isinstance(value, str) and bool(value)
        self._expression = Expressions([value], what) if self.is_expression else None
        self._names = frozenset() if self.is_expression else frozenset(value or ())

    def has_exactly(self, name: str) -> bool:
        return name in self._names

    def __contains__(self, name: str) -> bool:
        if self._expression is not None:
            return self._expression.first(name) is not None
        return any(end in self._names for end in ends_of(name))


def ends_of(name: str) -> Iterator[str]:
    """A dotted name, followed by what remains as parts are removed from its start."""
    while name:
        yield name
        name = name.partition(".")[2]


def layers_expressions(value: str | Sequence[str] | None) -> list:
    """The expressions of ``layers_pattern``, each with a group ``idx`` for the layer's index.

    Raises:
        InputError: see `Expressions`.
    """
    patterns = [value] if isinstance(value, str) else list(value or ())
    patterns = [pattern for pattern in patterns if pattern]
    framed = [_LAYERS_FRAME.format(pattern) for pattern in patterns] or [_FIRST_NUMBER]
    _check_programs(patterns or framed, framed, "layers_pattern", _MAX_LAYERS_PROGRAM)
    return [re2.compile(text, _LAYERS_OPTIONS) for text in framed]


def check_fields(record: dict, where: str) -> None:
    """Refuse config fields in an adapter file that name modules other than by bounded names and expressions.

    Raises:
        InputError: the message names the field.
    """
    for field in ("target_modules", "exclude_modules", "layers_pattern"):
        value = record.get(field)
        if value is not None and not isinstance(value, str):
            _check_names(value, f"{where}: {field}", is_plain=False)
        elif value and field != "layers_pattern":
            Expressions([value], f"{where}: {field}")
    if record.get("modules_to_save") is not None:
        _check_names(record["modules_to_save"], f"{where}: modules_to_save", is_plain=True)
    try:
        layers_expressions(record.get("layers_pattern"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    for field, numbers in (("rank_pattern", int), ("alpha_pattern", (int, float))):
        _check_numbers(record.get(field) or {}, numbers, f"{where}: {field}")
    layers = record.get("layers_to_transform")
    layers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if len(layers) > MAX_NAMES or not all(type(n) is int and 0 <= n < 2**31 for n in layers):
        raise InputError(f"{where}: layers_to_transform = {one_line(repr(layers[:9]), 60)} are not layer numbers")


def _check_names(names: object, what: str, is_plain: bool) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{what} = {one_line(repr(names), 60)} is not a list of names")
    if len(names) > MAX_NAMES:
        raise InputError(f"{what} lists {len(names):,} names, more than {MAX_NAMES:,}")
    odd = next((name for name in names if is_plain and not (len(name) < 512 and _NAME.fullmatch(name))), None)
    if odd is not None:  # PEFT would treat it as an expression
        raise InputError(f"{what}: {one_line(repr(odd), 60)} is not a module name")


def _check_numbers(patterns: object, kinds: type | tuple, what: str) -> None:
    if not isinstance(patterns, dict) or any(
        isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**31 for value in patterns.values()
    ):
        raise InputError(f"{what} must map names to positive numbers")
    if len(patterns) > MAX_NAMES or len(set(patterns.values())) > MAX_VALUES:
        raise InputError(f"{what} has {len(patterns):,} entries, more than can be read")
    Expressions(list(patterns), what, _RANK_FRAME)


def resolve(config: PeftConfig, names: Sequence[str], where: str) -> PeftConfig:
    """``config``, changed to target the same of ``names`` by plain names, which PEFT can match safely.

    Args:
        names: full names of a model's own modules.
        where: the file, for messages.

    Raises:
        InputError: it matches none of them, or an expression is invalid.
    """
    targets, given = Targets(config), config.target_modules
    if given is None or given == DUMMY_TARGET_MODULES or str(given).lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        chosen = [name for name in names if not targets.is_excluded(name)]
        excluded = [name for name in names if targets.is_excluded(name)]
        if getattr(config, "exclude_modules", None):
            config.exclude_modules = exact_pattern(excluded) or None
    else:
        chosen = [name for name in names if targets.check(name)]
        if not chosen:
            raise InputError(f"{where}: no module matches its target_modules={shown_targets(given)}")
        config.target_modules = exact_pattern(chosen)
        for field in ("exclude_modules", "layers_to_transform", "layers_pattern"):
            setattr(config, field, None)
    for field in ("rank_pattern", "alpha_pattern"):
        if getattr(config, field, None):
            setattr(config, field, _by_name(getattr(config, field), chosen, field))
    return config


def resolve_whole(config: PeftConfig, names: Sequence[str]) -> PeftConfig:
    """``config`` with ``modules_to_save`` as full names from ``names``; PEFT itself treats entries as expressions.

    Raises:
        InputError: so many modules that PEFT, which compares each with all others, would take too long.
    """
    saved = _Names(config.modules_to_save, "modules_to_save")
    found = [name for name in names if name in saved]
    if len(found) > MAX_VALUES:
        raise InputError(f"modules_to_save means {len(found):,} modules, more than {MAX_VALUES}")
    config.modules_to_save = found or None
    return config


def shown_targets(targets: str | Iterable[str]) -> str:
    return one_line(repr(targets if isinstance(targets, str) else sorted(targets)[:9]), 200)


def _by_name(patterns: dict[str, float], names: Sequence[str], what: str) -> dict[str, float]:
    """The same numbers for ``names``: one expression per number, which matches only these names."""
    expressions, values = Expressions(list(patterns), what, _RANK_FRAME), list(patterns.values())
    by_value: dict[float, list[str]] = {}
    for name in names:
        number = expressions.first(name)
        if number is not None:
            by_value.setdefault(values[number], []).append(name)
    return {f"^(?:{exact_pattern(chosen)})": value for value, chosen in by_value.items()}


def exact_pattern(names: Iterable[str]) -> str:
    """A regular expression that matches exactly ``names``; PEFT would also match list entries as ends of longer names.

    Similar layers are folded: ``blocks\\.(?:0|1)\\.(?:attn\\.qkv|mlp\\.fc1)``.
    """
    plain: list[str] = []
    numbered: dict[str, dict[str, list[str]]] = {}  # part before the first number -> number -> parts after it
    for name in names:
        match = re.fullmatch(r"(.*?\.)?(\d+)(\..*)?", name)
        if match is None:
            plain.append(re.escape(name))
        else:
            before, number, after = match.groups(default="")
            numbered.setdefault(before, {}).setdefault(number, []).append(re.escape(after))
    for before, layers in numbered.items():
        alike: dict[str, list[str]] = {}
        for number, afters in layers.items():
            alike.setdefault(_either(afters), []).append(number)
        plain += [f"{re.escape(before)}{_either(numbers)}{after}" for after, numbers in alike.items()]
    return "|".join(plain)


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
