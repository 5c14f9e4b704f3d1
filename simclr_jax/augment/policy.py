"""The augmentation policy as plain data: which operations make a view, with which probabilities and ranges.

`make_policy` turns the strings and nested dictionaries of a configuration into frozen dataclasses. The implementations
of the host and of the devices read these. Nothing here depends on TensorFlow or JAX.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from simclr_jax.augment.operations import COUNT, OPERATIONS, Operation, RandomCrop, Rule

# Evaluation crops the centre of images larger than SMALL_IMAGE_SIZE. This is its share of the tighter side.
CENTER_CROP_PROPORTION = 0.875
SMALL_IMAGE_SIZE = 32

# SimCLR's own augmentation (appendix A). Its recipe for CIFAR-10 leaves the blur out.
SIMCLR_VIEW = 'crop flip jitter drop blur'
SUPERVISED_VIEW = 'crop flip'


@dataclasses.dataclass(frozen=True)
class Policy:
    """Operations that turn one image into views: those shared by all views, then each view's own, in their order.

    An image without any crop on its way is resized (bicubic) to `size`. All views are clipped to [0, 1].

    Attributes:
        size: Height and width of the views, in pixels.
        shared: Operations applied once, before the branches split (Figure 5: one crop for both branches).
        views: One tuple of operations per view. An empty one leaves the view as `shared` made it.
        applied: In the second part of a split policy, each view's operations in the first part. A repeated operation
            counts from them, so that it draws the same numbers as in the whole policy.
    """

    size: int
    shared: tuple[Operation, ...]
    views: tuple[tuple[Operation, ...], ...]
    applied: tuple[tuple[Operation, ...], ...] = ()

    @property
    def begins_with_crops(self) -> bool:
        """Whether the first operation on a whole image is always a crop, or there is none."""
        branches = [self.shared] if self.shared else self.views
        return all(not branch or isinstance(branch[0], RandomCrop) for branch in branches)

    def split(self) -> tuple['Policy', 'Policy']:
        """Splits a whole policy into a part that needs whole images and a part on views of the final size.

        The first part is all of `shared` and each view's operations up to its last crop. It makes one image of `size`
        per view. The second part is the rest of each view.

        Raises:
            ValueError: The policy is a second part itself.
        """
        if self.applied:
            raise ValueError('a second part cannot be split again; split the whole policy')
        parts = [_split_after_last_crop(view) for view in self.views]
        first, rest = (tuple(part) for part in zip(*parts, strict=True))
        return Policy(self.size, self.shared, first), Policy(self.size, (), rest, applied=first)


def _split_after_last_crop(operations: tuple[Operation, ...]) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    crops = [place for place, operation in enumerate(operations, start=1) if isinstance(operation, RandomCrop)]
    place = crops[-1] if crops else 0
    return operations[:place], operations[place:]


def default_parameters() -> dict[str, dict[str, Any]]:
    """Every operation's parameters with their defaults: `{'crop': {'area': (0.08, 1.0), ...}, ...}`."""
    return {name: dataclasses.asdict(operation()) for name, operation in OPERATIONS.items()}


def declared_parameters() -> dict[str, dict[str, tuple[Any, str, Rule]]]:
    """Every operation's parameters, each as (default, meaning, rule)."""
    return {
        name: {
            field.name: (field.default, field.metadata['meaning'], field.metadata['rule'])
            for field in dataclasses.fields(operation)
        }
        for name, operation in OPERATIONS.items()
    }


def make_policy(
    size: int,
    *,
    shared: str = '',
    views: Sequence[str] = (SIMCLR_VIEW, SIMCLR_VIEW),
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
) -> Policy:
    """Builds a policy from the strings and plain values that a configuration holds.

    Args:
        size: Height and width of the views, in pixels.
        shared: Operations applied once for all views, as names separated by spaces. '' means none.
        views: One such string per view.
        parameters: Values that differ from `default_parameters()`, as a nested dictionary.

    Returns:
        The policy.

    Raises:
        ValueError: The description is wrong. The message lists everything that `check` finds, one problem per line.

    Example:
        Only the second view is blurred, both have the same crop:

        >>> policy = make_policy(32, shared='crop', views=('', 'blur'), parameters={'blur': {'p': 1.0}})
        >>> policy.views
        ((), (Blur(p=1.0, sigma=(0.1, 2.0)),))
    """
    parameters = parameters or {}
    problems = check(size, shared, views, parameters)
    if problems:
        raise ValueError('\n'.join(problems))

    def operations(names: str) -> tuple[Operation, ...]:
        return tuple(OPERATIONS[name](**_hashable(parameters.get(name, {}))) for name in names.split())

    return Policy(size, operations(shared), tuple(operations(view) for view in views))


def _hashable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ranges come back from JSON as lists. A frozen dataclass holds tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def check(size: int, shared: str, views: Sequence[str], parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Finds everything that is wrong with a policy's description. Arguments as for `make_policy`.

    Returns:
        One message per problem, each with the value, the rule and the cure. Empty if all is well.
    """
    problems = []
    if not COUNT.holds(size):
        problems.append(f'size={size!r}: must be {COUNT.text}, for example 224')
    problems += _check_names('shared', shared)
    if isinstance(views, str) or not isinstance(views, Sequence) or not views:
        problems.append(f'views={views!r}: must be one string per view, for example {(SIMCLR_VIEW,) * 2}')
    else:
        for number, view in enumerate(views):
            problems += _check_names(f'views[{number}]', view)
    for name, values in parameters.items():
        if name not in OPERATIONS:
            problems.append(f'parameters: {_unknown("operation", name, OPERATIONS)}')
        else:
            problems += _check_parameters(name, values)
    return problems


def _check_names(place: str, names: str) -> list[str]:
    if not isinstance(names, str):
        return [f'{place}={names!r}: must be one string of names, for example {SIMCLR_VIEW!r}']
    unknown = [name for name in names.split() if name not in OPERATIONS]
    return [f'{place}={names!r}: {_unknown("operation", name, OPERATIONS)}' for name in unknown]


def _check_parameters(operation: str, values: Mapping[str, Any]) -> list[str]:
    if not isinstance(values, Mapping):
        return [f'{operation}={values!r}: must be a dictionary of parameters, for example {{}}']
    fields = {field.name: field for field in dataclasses.fields(OPERATIONS[operation])}
    problems = []
    for name, value in values.items():
        if name not in fields:
            problems.append(f'{operation}: {_unknown("parameter", name, fields)}')
        elif not fields[name].metadata['rule'].holds(value):
            rule, default = fields[name].metadata['rule'].text, fields[name].default
            problems.append(f'{operation}.{name}={value!r}: must be {rule}, for example {default!r}')
    return problems


def _unknown(kind: str, name: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f'did you mean {nearest[0]!r}? ' if nearest else ''
    return f'unknown {kind} {name!r}; {hint}there are: {", ".join(known)}'
