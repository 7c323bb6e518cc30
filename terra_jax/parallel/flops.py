"""Floating-point operations of matrix products and convolutions, counted where JAX traced them.

These are a program's own operations, over all devices: 2 a multiply-add, nothing for what is done element by element.
Compilers count the body of a scan once; this counts it as often as it runs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from terra_jax.parallel.expected_trips import noted_trips


def count_flops(jaxpr: Any) -> float:
    """Operations of a jaxpr and of all that it calls.

    Scan bodies count times their length, while bodies times their trip count where that is static, and as often as is
    noted where data decide it (`expected_trips`; once without a note). Conditionals count as their dearest branch,
    bodies of a shard_map on every device.

    Args:
        jaxpr: `jax.jit(function).trace(...).jaxpr`, or what `jax.make_jaxpr` gives.
    """
    return sum(_count(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _count(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name in ("dot_general", "ragged_dot", "ragged_dot_general"):
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(count_flops(branch) for branch in parameters["branches"])
    inner = sum(count_flops(called) for called in _called(parameters))
    if name == "scan":
        return parameters["length"] * inner
    if name == "while":
        return _trip_count(equation) * inner if inner else 0.0
    if name == "shard_map":
        return parameters["mesh"].size * inner
    return inner


def _called(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item


def _product(equation: Any) -> float:
    left, result = equation.invars[0].aval, equation.outvars[0].aval
    numbers = equation.params.get("dimension_numbers") or equation.params["ragged_dot_dimension_numbers"]
    numbers = getattr(numbers, "dot_dimension_numbers", numbers)
    (contracted, _), _ = numbers
    return 2.0 * math.prod(result.shape) * math.prod(left.shape[i] for i in contracted)


def _convolution(equation: Any) -> float:
    image, kernel = (variable.aval.shape for variable in equation.invars[:2])
    result, p = equation.outvars[0].aval.shape, equation.params
    of_image, of_kernel, of_result = p["dimension_numbers"]
    multiplications = result[of_result[0]] * result[of_result[1]] * kernel[of_kernel[1]]
    for i, (stride, padding) in enumerate(zip(p["window_strides"], p["padding"], strict=True)):
        multiplications *= touched(
            image[of_image[2 + i]],
            kernel[of_kernel[2 + i]],
            result[of_result[2 + i]],
            stride=stride,
            padding=padding[0],
            image_dilation=p["lhs_dilation"][i],
            kernel_dilation=p["rhs_dilation"][i],
        )
    return 2.0 * multiplications


def touched(
    image: int,
    kernel: int,
    result: int,
    *,
    stride: int = 1,
    padding: int = 0,
    image_dilation: int = 1,
    kernel_dilation: int = 1,
) -> int:
    """How many pairs of output and tap, along one dimension of a convolution, meet an image element.

    Padding and the holes of a dilated image meet none.
    """
    at = np.arange(result)[:, None] * stride - padding + np.arange(kernel) * kernel_dilation
    return int(((at % image_dilation == 0) & (at >= 0) & (at // image_dilation < image)).sum())


def _trip_count(equation: Any) -> int:
    """How often a while loop of the form `while i < n: ...; i += 1` runs; what is noted, or 1, if that is not known."""
    static = _static_trip_count(equation)
    if static is not None:
        return static
    noted = noted_trips(str(equation.source_info.name_stack))
    return 1 if noted is None else noted


def _static_trip_count(equation: Any) -> int | None:
    condition, body = equation.params["cond_jaxpr"].jaxpr, equation.params["body_jaxpr"].jaxpr
    of_condition, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    carried = equation.invars[of_condition + of_body :]
    given = dict(zip(condition.invars, [*equation.invars[:of_condition], *carried], strict=True))
    tests = [test for test in condition.eqns if test.outvars[0] is condition.outvars[0]]
    if len(tests) != 1 or tests[0].primitive.name != "lt":
        return None
    counter, limit = tests[0].invars
    if counter not in condition.invars[of_condition:]:
        return None
    place = condition.invars.index(counter) - of_condition
    step = next((e for e in body.eqns if e.outvars[0] is body.outvars[place]), None)
    one = step is not None and step.primitive.name == "add" and _known([step.invars[1]]) == [1]
    bounds = _known([carried[place], limit if hasattr(limit, "val") else given[limit]])
    return max(bounds[1] - bounds[0], 0) if one and bounds is not None else None


def _known(values: Sequence[Any]) -> list[int] | None:
    """Values of literals, None unless all are."""
    return [int(value.val) for value in values] if all(hasattr(value, "val") for value in values) else None
