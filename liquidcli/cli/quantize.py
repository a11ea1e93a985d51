"""`liquid quantize`: a GGUF to a smaller one, with llama-quantize's words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..ui.console import out
from .options import DryRun, Json, option

if TYPE_CHECKING:
    from ..quant import Plan

_SOURCE_SUFFIX = re.compile(
    r"([-._](F32|F16|FP16|FP32|BF16|I?Q\d\w*|TQ\d\w*|MXFP4\w*))?(-\d{5}-of-\d{5})?$", re.IGNORECASE
)
_FORM = "liquid quantize IN [OUT] TYPE [NTHREADS]"


def _refuse_q(given: bool) -> None:
    if given:
        raise UsageError("-q is not used here", hint="write the type as a word: liquid quantize IN [OUT] Q4_K_M")


Words = Annotated[list[str], typer.Argument(metavar="IN [OUT] TYPE [NTHREADS]", show_default=False)]
Imatrix = Annotated[
    Path | None, option("--imatrix", metavar="FILE", help="Importance matrix, as llama-imatrix writes it.")
]
TensorType = Annotated[
    list[str] | None,
    option("--tensor-type", metavar="RE=TYPE", help="This type for tensors whose name matches; repeatable."),
]
OutputType = Annotated[str | None, option("--output-tensor-type", metavar="TYPE", help="This type for output.weight.")]
EmbeddingType = Annotated[
    str | None, option("--token-embedding-type", metavar="TYPE", help="This type for the embeddings.")
]
Leave = Annotated[bool, option("--leave-output-tensor", help="Leave output.weight as it is.")]
Pure = Annotated[bool, option("--pure", help="The same type for every matrix.")]
Requantize = Annotated[
    bool, option("--allow-requantize", help="Quantize again what is quantized already; costs quality.")
]
All = Annotated[bool, option("--all", help="With --dry-run: the size of every type.")]
Fit = Annotated[
    str | None, option("--fit", metavar="SIZE", help="Instead of a TYPE: the largest whose file fits, like 8G.")
]
LongQuiet = Annotated[bool, option("--quiet", help="Only results, no talk.")]
RefuseQ = Annotated[bool, option("-q", "--quantize", help="", hidden=True, is_eager=True, callback=_refuse_q)]


@dataclass(frozen=True)
class Request:
    """The positional words, sorted."""

    source: str
    output: Path | None
    type: str | None
    n_threads: int | None


def quantize(
    words: Words,
    imatrix: Imatrix = None,
    tensor_type: TensorType = None,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    leave_output_tensor: Leave = False,
    pure: Pure = False,
    allow_requantize: Requantize = False,
    dry_run: DryRun = False,
    all: All = False,
    fit: Fit = None,
    json: Json = False,
    quiet: LongQuiet = False,
    q: RefuseQ = False,
) -> None:
    """Make a model file smaller. IN is a file or a stored model.

    TYPE is Q4_0 Q4_1 Q4_K_S Q4_K_M Q5_0 Q5_1 Q5_K_S Q5_K_M Q6_K Q8_0 F16 BF16 or F32, or its number. OUT lies beside IN
    and is named after it if it is not given; its path is printed.
    """
    from .. import quant
    from ..hub.resolve import resolve_model

    out.configure(json=json, quiet=quiet)
    request = sort_words(words, needs_type=not (all or fit))
    if all and (fit or request.output or request.n_threads or not dry_run):
        raise UsageError("--all only lists sizes", hint="liquid quantize IN --all --dry-run")
    options = quant.Options(
        quant.overrides(tensor_type or ()),
        quant.optional_tensor_type(output_tensor_type),
        quant.optional_tensor_type(token_embedding_type),
        leave_output_tensor,
        pure,
        allow_requantize,
    )
    with out.progress(request.source, None) as bar:
        source = resolve_model(request.source, progress=bar.update).path
    if all:
        _list_sizes(quant.plan_every_type(source, options, imatrix))
        return
    name = request.type or _fitting(source, options, imatrix, fit)
    plan = quant.plan_path(source, name, options, imatrix)
    target = request.output or _beside(source, is_file=Path(request.source).is_file(), name=plan.type.name)
    if dry_run:
        _show_plan(plan, target)
    else:
        _carry_out(plan, target, request.n_threads)


def sort_words(words: list[str], *, needs_type: bool) -> Request:
    """IN TYPE, IN OUT TYPE, either with NTHREADS; without a type where an option chooses it."""
    from ..quant import find_file_type

    source, rest = words[0], list(words[1:])
    output = kind = None
    if rest and not (find_file_type(rest[0]) if needs_type else rest[0].isdecimal()):
        output = Path(rest.pop(0))
    if needs_type:
        kind = _type_word(rest, output)
    elif output and find_file_type(str(output)):
        raise UsageError(f"{output} is a type, which is chosen by an option already", hint=_FORM)
    n_threads = _thread_count(rest.pop(0)) if rest else None
    if rest:
        raise UsageError(f"{rest[0]!r} is one word too many", hint=_FORM)
    return Request(source, output, kind, n_threads)


def _type_word(rest: list[str], output: Path | None) -> str:
    from ..quant import FILE_TYPES, find_file_type

    hint = f"{_FORM}, TYPE is one of {', '.join(FILE_TYPES)}"
    if not rest:
        raise UsageError(f"a type was expected after {output or 'IN'}", hint=hint)
    found = find_file_type(rest[0])
    if found is None:
        raise UsageError(f"{rest[0]!r} is no quantization type", hint=hint)
    del rest[0]
    return found.name


def _thread_count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"{word!r} is no number of threads", hint=_FORM)
    return int(word)


def _fitting(source: Path, options: Any, imatrix: Path | None, fit: str | None) -> str:
    from .. import quant

    plans = quant.plan_every_type(source, options, imatrix)
    return quant.largest_that_fits(plans, quant.budget_bytes(fit or "")).type.name


def _beside(source: Path, *, is_file: bool, name: str) -> Path:
    """Beside a file of one's own; in the current folder for a stored model, whose store is not ours to write in."""
    stem = source.name.removesuffix(".gguf")
    stem = _SOURCE_SUFFIX.sub("", stem, count=1) or stem
    return (source.parent if is_file else Path()) / f"{stem}-{name}.gguf"


def _list_sizes(plans: list[Plan]) -> None:
    from ..amounts import size_text

    if out.json_mode:
        out.json([{**plan.as_json(with_tensors=False), "use": plan.type.use} for plan in plans])
        return
    rows = [(p.type.name, size_text(p.size_bytes), f"{p.bits_per_weight:.2f}", p.type.use) for p in plans]
    out.table(["TYPE", ">SIZE", ">BITS/WEIGHT", "USE"], rows)


def _show_plan(plan: Plan, target: Path) -> None:
    from ..quant import schema

    if out.json_mode:
        out.json({**plan.as_json(), "output": str(target), "sha256": None, "seconds": None})
        return
    out.data(schema(plan))
    out.talk(f"{target} would have {_figures(plan)}")


def _carry_out(plan: Plan, target: Path, n_threads: int | None) -> None:
    from .. import quant

    with out.progress(f"quantizing to {plan.type.name}", plan.source_bytes) as bar:
        result = quant.run(plan, target, n_threads=n_threads, progress=bar.update)
    if out.json_mode:
        out.json(result.as_json())
        return
    out.talk(f"{_figures(plan)}, in {result.seconds:.1f} s, sha256 {result.sha256}")
    out.data(str(target))


def _figures(plan: Plan) -> str:
    from ..amounts import size_text

    figures = f"{size_text(plan.size_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    if plan.n_fallbacks:
        tensors = "1 tensor" if plan.n_fallbacks == 1 else f"{plan.n_fallbacks} tensors"
        figures += f"; {tensors} fell back to a type that divides their rows"
    return figures
