"""Which values of a store count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from analyze.display.shown import Shown
from analyze.question.checks import check_choice, whole
from capture.errors import OutliersError
from capture.store.schema import LAYER, POSITION, SEQUENCE, SIGNALS, SITE, SPECIAL_TOKENS

if TYPE_CHECKING:
    import xarray as xr

SCALES: Final = ("absolute", "rms", "median")
ROUNDINGS: Final = ("none", "bfloat16")
TOKEN_WORDS: Final = ("bos", "eos", "special")


@dataclass(frozen=True, kw_only=True)
class View(Shown):
    """Which values count, and in which unit.

    Parameters
    ----------
    signal : `input` (residual stream entering a norm) or `output` (what the sublayer receives)
    layer_range : first layer and the layer after the last; None for all
    sites : names of sites; None for all
    sequences : indices of sequences; None for all
    skip_first : number of positions at the start of each sequence that do not count
    skip_tokens : tokens whose positions do not count, wherever they are: numbers, or `bos`, `eos` and `special` (all
        special tokens) as the store's tokenizer has them
    scale : `absolute`; `rms` or `median`: in units of the root mean square or the median magnitude of the finite
        values that count of the same (sequence, layer, site)
    rounding : `none`; `bfloat16`: values are rounded to the nearest bfloat16, halfway cases to the even one, before
        anything else is done to them. Where the model computed in bfloat16 it changes nothing

    Raises
    ------
    OutliersError
        A setting that no store can satisfy.
    """

    signal: Literal["input", "output"] = "input"
    layer_range: tuple[int, int] | None = None
    sites: tuple[str, ...] | None = None
    sequences: tuple[int, ...] | None = None
    skip_first: int = 0
    skip_tokens: tuple[int | str, ...] = ()
    scale: Literal["absolute", "rms", "median"] = "absolute"
    rounding: Literal["none", "bfloat16"] = "none"

    def __post_init__(self) -> None:
        check_choice("signal", self.signal, SIGNALS)
        check_choice("scale", self.scale, SCALES)
        check_choice("rounding", self.rounding, ROUNDINGS)
        # Lists, as JSON has them, and NumPy's integers are welcome.
        object.__setattr__(self, "skip_first", whole("skip-first", self.skip_first))
        if self.skip_first < 0:
            raise OutliersError(f"skip-first is {self.skip_first}; expected a whole number of positions, 0 or more")
        object.__setattr__(self, "skip_tokens", tuple(_token(token) for token in self.skip_tokens))
        if self.sites is not None:
            object.__setattr__(self, "sites", tuple(self.sites))
        for name in ("layer_range", "sequences"):
            if getattr(self, name) is not None:
                numbers = tuple(whole(name.replace("_", "-"), number) for number in getattr(self, name))
                object.__setattr__(self, name, numbers)
        if self.layer_range is not None:
            if len(self.layer_range) != 2:
                raise OutliersError(f"layer-range is {self.layer_range}; expected two numbers, FIRST and STOP")
            first, stop = self.layer_range
            if not 0 <= first < stop:
                raise OutliersError(f"layer-range is {first}:{stop}; expected FIRST:STOP with 0 <= FIRST < STOP")
        for name, chosen in (("sites", self.sites), ("sequences", self.sequences)):
            if chosen is not None and (len(chosen) == 0 or len(set(chosen)) != len(chosen)):
                raise OutliersError(f"{name} is {','.join(map(str, chosen))!r}; expected one or more, each once")

    @property
    def view(self) -> View:
        """The view alone, without whatever a subclass adds."""
        return View(**{name: getattr(self, name) for name in View.__dataclass_fields__})

    @property
    def plain(self) -> bool:
        """Whether the peaks that every store keeps serve this view."""
        everything = self.layer_range is None and self.sites is None and self.skip_first == 0 and not self.skip_tokens
        return everything and self.scale == "absolute"

    def resolve(self, store: xr.Dataset) -> Self:
        """Check against a store, and spell the whole of a dimension as None, and tokens as numbers.

        Raises
        ------
        OutliersError
            The store has no such layer, site, sequence or position, or does not say which tokens are special.
        """
        sizes = store.sizes
        changes: dict[str, Any] = {}
        if self.layer_range is not None:
            if self.layer_range[1] > sizes[LAYER]:
                first, stop = self.layer_range
                raise OutliersError(f"layer-range is {first}:{stop}; the store has layers 0 to {sizes[LAYER] - 1}")
            if self.layer_range == (0, sizes[LAYER]):
                changes["layer_range"] = None
        if self.sites is not None:
            known = [str(site) for site in store[SITE].values]
            unknown = [site for site in self.sites if site not in known]
            if unknown:
                raise OutliersError(f"sites has {', '.join(unknown)}; the store has {', '.join(known)}")
            ordered = tuple(site for site in known if site in self.sites)
            changes["sites"] = None if len(ordered) == len(known) else ordered
        if self.sequences is not None:
            wrong = [n for n in self.sequences if not 0 <= n < sizes[SEQUENCE]]
            if wrong:
                raise OutliersError(f"sequences has {wrong[0]}; the store has sequences 0 to {sizes[SEQUENCE] - 1}")
            ordered_numbers = tuple(sorted(self.sequences))
            changes["sequences"] = None if len(ordered_numbers) == sizes[SEQUENCE] else ordered_numbers
        if self.skip_first >= sizes[POSITION]:
            raise OutliersError(
                f"skip-first is {self.skip_first}; the store has {sizes[POSITION]} positions, so that none would count"
            )
        if self.skip_tokens:
            changes["skip_tokens"] = tuple(sorted({n for token in self.skip_tokens for n in _numbers(token, store)}))
        return replace(self, **changes)

    def summary(self) -> list[tuple[str, Any]]:
        """Every setting that is not the whole."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return [
            (name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, tuple) else value)
            for name, value in shown.items()
        ]

    def select(self, data: xr.Dataset) -> xr.Dataset:
        """Part of a Dataset that counts, along whichever of the dimensions it has."""
        chosen: dict[str, Any] = {}
        if self.layer_range is not None:
            chosen[LAYER] = slice(*self.layer_range)
        if self.sites is not None and SITE in data.dims:
            known = [str(site) for site in data[SITE].values]
            chosen[SITE] = [known.index(site) for site in self.sites]
        if self.sequences is not None:
            chosen[SEQUENCE] = list(self.sequences)
        if self.skip_first:
            chosen[POSITION] = slice(self.skip_first, None)
        return data.isel(chosen, missing_dims="ignore")


def _token(token: Any) -> int | str:
    """A token to skip, checked."""
    if isinstance(token, str):
        if token in TOKEN_WORDS:
            return token
        raise OutliersError(f"skip-tokens has {token!r}; expected token numbers, or {', '.join(TOKEN_WORDS)}")
    number = whole("skip-tokens", token)
    if number < 0:
        raise OutliersError(f"skip-tokens has {number}; expected token numbers, 0 or more")
    return number


def _numbers(token: int | str, store: xr.Dataset) -> list[int]:
    """Numbers of a token, by what the store says of its tokenizer."""
    if not isinstance(token, str):
        return [token]
    special = store.attrs.get(SPECIAL_TOKENS)
    known = special.get(token) if isinstance(special, Mapping) else None
    if not isinstance(known, list) or not all(type(number) is int and number >= 0 for number in known):
        raise OutliersError(
            f"skip-tokens has {token!r}, and the store does not say which tokens these are; name them by number: "
            "outliers metrics lists the tokens with the largest magnitudes"
        )
    return known
