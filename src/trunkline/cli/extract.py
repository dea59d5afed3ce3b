"""``trunkline extract``: the features of many images, in a store that any run can go on with."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from trunkline.cli.completion import backbones
from trunkline.cli.extract_stores import merge_command, stats_command, verify_command
from trunkline.cli.features import (
    BandsOption,
    WhiteOption,
    parse_bands,
    parse_levels,
    parse_size,
)
from trunkline.cli.loaded import (
    AgreeOption,
    PrefixOption,
    SeedOption,
    TrustOption,
    WeightsOption,
    build_network,
    print_report,
    warn_of_assumed,
    warn_of_random,
)
from trunkline.cli.output import one_line, print_json, say
from trunkline.cli.signals import stopping_on_signals
from trunkline.errors import ConfigError

if TYPE_CHECKING:
    from trunkline.backbones.backbone import Backbone
    from trunkline.extraction.reports import ExtractReport, Progress
    from trunkline.preprocessing import Preprocessing
    from trunkline.runtimes.runner import Runner

_LINE_SECONDS = 60  # between lines of progress where nobody watches a bar
_SHARD = re.compile(r"(\d+)/(\d+)")


class _Extract(TyperGroup):
    """``extract SRC OUT`` is ``extract run SRC OUT``; a folder ``verify`` is ``./verify``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        begun = not args and ctx.resilient_parsing  # a shell asks what may come first
        if not begun and (not args or args[0] not in self.commands):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        run = self.commands["run"]
        with run.make_context("run", [], parent=ctx, resilient_parsing=True) as context:
            flags = run.shell_complete(context, incomplete)
        verbs = super().shell_complete(ctx, incomplete)
        return [*verbs, *(flag for flag in flags if flag.value not in {v.value for v in verbs})]


app = typer.Typer(
    cls=_Extract, help="Compute the features of many images, and keep them.", no_args_is_help=False
)
app.command("verify")(verify_command)
app.command("stats")(stats_command)
app.command("merge")(merge_command)


@app.command("run")
def run_command(  # one parameter per flag
    src: Annotated[
        str,
        typer.Argument(help="Folder, glob, .txt list, .parquet, .tar, or a URL of any of them."),
    ],
    out: Annotated[
        str, typer.Argument(help="NAME.parquet (vectors) or NAME.zarr (maps).", metavar="OUT")
    ],
    backbone: Annotated[
        str,
        typer.Option(
            autocompletion=backbones,
            metavar="NAME|DIR|hf://...",
            help="A backbone, or a runner that deploy saved.",
        ),
    ],
    weights: WeightsOption = "none",
    prefix: PrefixOption = None,
    seed: SeedOption = 0,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="INDEX...",
            help="Which maps, in this order: 0 1 2 3 are strides 4 8 16 32. Default: all.",
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="avg|max|gem|none", help="From maps to vectors. Default: none for .zarr."
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Give every vector length 1.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|float16", help="Default: float16 for .zarr, else float32."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="clip-retrieval", help="One level as .npy files with tables."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|HxW|original", help="Of images. Default: what the weights expect."),
    ] = None,
    pad: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Pad H and W with black to multiples of N."),
    ] = None,
    decode: Annotated[
        str,
        typer.Option(metavar="exact|fast", help="fast reads large JPEGs at reduced scale."),
    ] = "exact",
    max_pixels: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Larger images fail.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Larger files fail, read no further.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a .parquet source: paths or bytes.")
    ] = None,
    key_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a .parquet source: keys.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="auto, onnxruntime, openvino, inductor or torch.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(metavar="fp32|bf16|int8", help="Of numbers.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of the network. Default: all cores.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Photos that int8 is fitted to. Default: SRC's first."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Default: by threads and memory.")
    ] = None,
    alpha: Annotated[
        str,
        typer.Option(metavar="white|black|ignore", help="What transparency is laid over."),
    ] = "white",
    truncated: Annotated[
        str,
        typer.Option(metavar="refuse|keep", help="What becomes of JPEGs whose end is missing."),
    ] = "refuse",
    bands: BandsOption = None,
    white: WhiteOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Processes that decode; 0 for none. Default: half the cores.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="An image that takes longer has failed.")
    ] = 60.0,
    shard_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images of a shard, done whole or again.")
    ] = 10_000,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N equal parts.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Here, or on workers of a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of the cluster. Default: start Ray.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="First try failed images again.")
    ] = False,
    max_errors: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="End when more images have failed.")
    ] = None,
    trust: TrustOption = False,
    allow_noncommercial: AgreeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compute the features of every image in SRC and keep them in OUT.

    The same command goes on where an earlier one ended. An image that cannot be read becomes a row
    that says why. See also: trunkline extract verify, stats, merge.
    """
    part = None if shard is None else parse_shard(shard)
    return_idx = None if levels is None else parse_levels(levels)
    chosen_bands = None if bands is None else parse_bands(bands)
    if size is not None:
        parse_size(size)  # refused before weights are downloaded for it
    from trunkline.extraction.extracting import extract  # when the verb runs

    saved = _is_saved_runner(backbone)
    if saved and prefix is not None:
        raise ConfigError(
            f"--prefix {prefix} is a place in a file of weights, and {backbone} is a saved runner, "
            "which has its own; leave --prefix out."
        )
    network = (
        _saved_runner(backbone, weights, threads, trust=trust)
        if saved
        else build_network(
            backbone,
            weights,
            return_idx,
            seed=seed,
            allow_noncommercial=allow_noncommercial,
            prefix=prefix,
            in_channels=len(chosen_bands or "RGB"),
        )
    )
    if not saved:
        _say_of_weights(network, seed)
        warn_of_assumed(cast("Backbone", network))
    with stopping_on_signals() as stopping, _progress() as progress:
        report = extract(
            src,
            out,
            network,
            levels=return_idx,
            pool=pool,
            normalize=normalize,
            dtype=cast(Any, dtype),  # extract says what is allowed
            layout=layout,
            preprocessing=_preprocessing(network, size, pad),
            decode=cast(Any, decode),
            **({} if max_pixels is None else {"max_pixels": max_pixels}),
            **({} if max_bytes is None else {"max_bytes": max_bytes}),
            alpha=cast(Any, alpha),  # extract says what is allowed
            truncated=cast(Any, truncated),
            bands=chosen_bands,
            white=white,
            column=column,
            key_column=key_column,
            runtime=runtime,
            precision=precision,
            threads=threads,
            calibration=calibration,
            batch_size=batch_size,
            workers=workers,
            timeout_seconds=timeout,
            shard_size=shard_size,
            shard=part,
            retry_failed=retry_failed,
            max_errors=max_errors,
            engine=engine,
            ray_address=ray_address,
            progress=progress,
            stopping=stopping.event,
            trust=trust,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print_summary(report)
    if report.stopped and not report.complete:
        raise typer.Exit(128 + stopping.number)
    if report.images and report.failed == report.images:
        from trunkline.extraction.checking import stats

        reason, times = next(iter(stats(out).failures), ("", 0))
        say(
            f"trunkline: error: all {report.images} images failed; {times} times: "
            f"{one_line(reason)}"
        )
        raise typer.Exit(1)


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) of a text such as ``0/4``.

    Raises:
        ConfigError: It has another form, or i is not below n.
    """
    match = _SHARD.fullmatch(text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= parts:
        raise ConfigError(
            f"--shard got {text!r}; give I/N with I from 0 to N-1, such as 0/4 to 3/4 on four "
            "machines."
        )
    return part, parts


def _is_saved_runner(backbone: str) -> bool:
    return Path(backbone, "runner.json").is_file()


def _saved_runner(folder: str, weights: str, threads: int | None, *, trust: bool) -> Runner:
    if weights != "none":
        raise ConfigError(
            f"--backbone {folder} is a saved runner, which has its weights, and --weights is "
            f"{weights}; leave --weights out."
        )
    from trunkline.runtimes.saving import load_runner

    return load_runner(folder, threads=threads, trust=trust)


def _say_of_weights(network: Any, seed: int) -> None:
    if network.load_report is None:
        warn_of_random(seed, on_stderr=True)
    elif sys.stderr.isatty():
        print_report(network.load_report)


def _preprocessing(
    network: Backbone | Runner, size: str | None, pad: int | None
) -> Preprocessing | None:
    """Return what the weights expect with another size, None where nothing was asked for."""
    if size is None and pad is None:
        return None
    import dataclasses

    chosen = network.preprocessing
    if size is not None:
        chosen = chosen.with_size(parse_size(size))
    return dataclasses.replace(chosen, pad_to_multiple=pad) if pad is not None else chosen


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show a bar, or a line a minute where nobody is looking."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from trunkline.extraction.progress import bar

    with bar() as show:
        yield show


class _Lines:
    """Progress for a log."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, now: Progress) -> None:
        if time.monotonic() - self._last < _LINE_SECONDS:
            return
        self._last = time.monotonic()
        done, speed = now.before + now.images, now.images / now.seconds
        total = f"{now.total}" if now.listed else f"{now.total} or more"
        left = f", {(now.total - done) / speed / 60:.0f} min left" if now.listed and speed else ""
        say(f"{done} of {total} images, {speed:.1f} images/s, {now.failed} failed{left}")


def _print_summary(report: ExtractReport) -> None:
    typer.echo(f"store     {one_line(report.out)}")
    typer.echo(
        f"backbone  {report.backbone or 'of your own'}, {report.runtime}, {report.precision}"
    )
    typer.echo(f"levels    {', '.join(report.levels)}")
    typer.echo(
        f"images    {report.images} in {report.seconds:.1f} s ({report.images_per_second:.1f} "
        f"images/s), {report.failed} failed"
    )
    if report.passed_over:
        named = ", ".join(f"{n} {one_line(ending)}" for ending, n in report.passed_over.items())
        typer.echo(
            f"passed    {sum(report.passed_over.values())} files that are no images: {named}"
        )
    typer.echo(
        f"shards    {report.shards} finished, {report.shards_before} were before, "
        f"{report.shards_missing} missing"
    )
    if report.failed:
        typer.echo(
            "\nFailed images are rows with status 'failed' and the reason; "
            "the same command with --retry-failed tries them again."
        )
    if report.stopped and not report.complete:
        typer.echo("\nStopped. Finished shards are kept; the same command goes on with the rest.")
    elif report.shards_missing:
        typer.echo("\nOther runs work on the missing shards, or other parts of --shard have them.")
