"""`moecap-cluster`: options, exit codes and what is printed. Composition only; heavy imports wait for their command.

Exit codes: 0 ok, 1 some runs failed or were refused, 2 wrong use. Results go to stdout, progress and errors to stderr.
"""

# ruff: noqa: PLC0415  (imports inside commands: `--help` must answer at once)

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

import moecap
from moecap.dtypes import HELD
from moecap.errors import ConfigError, LeaseHeldError, MoECapError, StudyError, StudyExistsError, UnsupportedModelError

if TYPE_CHECKING:
    from cluster.agenda import Agenda
    from cluster.calibrate import NodeCalibration
    from cluster.driver import Outcome
    from cluster.launch import Launched
    from moecap.records import StudyPlan

FAILED, WRONG_USE = 1, 2
P = ParamSpec("P")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
study_option = click.option("--study", "study_name", metavar="NAME", help="Which study, where the store holds several.")
address_option = click.option(
    "--address", default="local", show_default=True, metavar="auto|local|HOST:PORT",
    help="Ray cluster to use: `local` starts one inside this process, `auto` finds the one that this machine is in.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(moecap.__version__, prog_name="moecap-cluster")
def main() -> None:
    """Measure cost, accuracy and performance of sparse MoE serving across a fleet."""


def command(run: Callable[P, int | None]) -> click.Command:
    """Make a function a command: its result is the exit code, our own errors become messages with theirs."""

    @wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = run(*args, **kwargs) or 0
        except MoECapError as error:
            click.echo(f"error: {error}", err=True)
            if kwargs.get("as_json"):
                _print({"error": _error_document(error)})
            wrong_use = ConfigError | StudyExistsError | LeaseHeldError | UnsupportedModelError
            code = WRONG_USE if isinstance(error, wrong_use) else FAILED
        click.get_current_context().exit(code)

    return main.command(name=run.__name__)(wrapped)


@command
@click.argument("study", required=False, type=click.Path(path_type=Path))
@address_option
@click.option("--store", metavar="URI", help="Where results go: a path, s3://... or gs://...  [default: the study's]")
@click.option("--resume", is_flag=True, help="Run what is missing of a study that the store holds.")
@click.option("--retry-failed", is_flag=True, help="With --resume: also run again what failed by itself.")
@click.option("--dry-run", is_flag=True, help="Show where every point would run; start nothing.")
@click.option("--max-runs", type=click.IntRange(min=0), metavar="N", help="Start at most N runs.")
@click.option("--set", "overrides", multiple=True, metavar="A.B.0.C=YAML", help="Change the study; `a+=YAML` appends.")
@json_option
def launch(
    *,
    study: Path | None,
    address: str,
    store: str | None,
    resume: bool,
    retry_failed: bool,
    dry_run: bool,
    max_runs: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run STUDY (default: the packaged laptop study) and report it."""
    from moecap.metrics.reduce import metric_names
    from moecap.study import load_study

    if retry_failed and not resume:
        raise ConfigError("needs a study that ran before", "--retry-failed", True, "pass --resume with it")
    plan = _stored_at(load_study(study, overrides, metric_names()), store)
    from cluster.launch import LaunchOptions, survey  # after the study: its mistakes need no Ray
    from cluster.launch import launch as launch_plan

    options = LaunchOptions(address=address, resume=resume, retry_failed=retry_failed, max_runs=max_runs)
    if dry_run:
        return _show_survey(survey(plan, options), as_json)
    return _show_launched(launch_plan(plan, options, _show_progress), as_json)


@command
@address_option
@json_option
def nodes(address: str, as_json: bool) -> None:
    """Show the nodes of a cluster and what they can host."""
    from cluster.console import node_table
    from cluster.inventory import connected, inventory
    from moecap.records import to_jsonable

    with connected(address):
        infos = [node.info for node in inventory()]
    _print(to_jsonable(infos) if as_json else node_table(infos))


@command
@address_option
@click.option("--again", is_flag=True, help="Measure anew what is known already.")
@json_option
def calibrate(address: str, again: bool, as_json: bool) -> int:
    """Measure what every node really reaches, once: memory, matrix products, links, launches, disk, collectives."""
    import time

    from cluster.calibrate import calibrate_fleet
    from cluster.inventory import connected, inventory
    from cluster.rates import calibration_document, calibration_text, origin, part_name

    def report(one: NodeCalibration) -> None:
        for known in one.known:
            told = f"{one.node.hostname}: {part_name(known.calibration.part)}: {origin(known, time.time())}"
            click.echo(told, err=True)

    with connected(address):
        found = calibrate_fleet(inventory(), again, report)
    show = calibration_document if as_json else calibration_text
    _print(show(found, time.time()))
    return 0 if all(one.good for one in found) else FAILED


@command
@address_option
@click.option("--store", metavar="URI", default="moecap-store", show_default=True, help="Where results would go.")
@json_option
def doctor(address: str, store: str, as_json: bool) -> int:
    """Show what every node can and cannot measure, and how to enable it."""
    from cluster.doctor import examination_document, examination_text, examine
    from cluster.inventory import connected, inventory

    with connected(address):
        found = examine(inventory(), _absolute(store))
    _print(examination_document(found) if as_json else examination_text(found))
    for line in found.needed:
        click.echo(f"nothing can be measured without: {line}", err=True)
    return FAILED if found.needed else 0


@command
@click.argument("name", required=False)
@json_option
def devices(name: str | None, as_json: bool) -> None:
    """Show the hardware catalogue, or all of one device: a key, a product name, or what a driver reports."""
    from cluster.devices import device_table, device_text
    from moecap.hardware.catalogue import catalogue, find_device
    from moecap.records import to_jsonable

    if name is None:
        specs = list(catalogue().values())
        _print(to_jsonable(specs) if as_json else device_table(specs))
    else:
        spec = find_device(name)
        _print(to_jsonable(spec) if as_json else device_text(spec))


@command
@click.argument("model")
@click.option(
    "--dtype", metavar="D", help=f"As if every weight had this width: {', '.join(HELD)}.  [default: as stored]"
)
@click.option("--kv-dtype", metavar="D", help="Of KV cache and state, likewise.  [default: as the checkpoint says]")
@json_option
def model(model: str, dtype: str | None, kv_dtype: str | None, as_json: bool) -> None:
    """Show what MODEL weighs and computes: a Hugging Face id, a local folder or a config.json."""
    from cluster.models import model_text
    from moecap.model.describe import document, find_model

    found = document(find_model(model), dtype, kv_dtype)
    _print(found if as_json else model_text(found))


@command
@click.argument("store")
@study_option
@json_option
def status(store: str, study_name: str | None, as_json: bool) -> None:
    """Show where every run of a study stands."""
    from cluster.reduce import open_study
    from cluster.status import run_status, status_text

    runs = run_status(*open_study(store, study_name))
    _print({"runs": runs} if as_json else status_text(runs))


@command
@click.argument("store")
@study_option
@json_option
def reduce(store: str, study_name: str | None, as_json: bool) -> None:
    """Compute all metrics anew from the recorded runs."""
    from cluster.reduce import open_study, reduce_store
    from moecap.records import to_jsonable
    from moecap.report import console_table

    opened, plan = open_study(store, study_name)
    reduction = reduce_store(opened)
    if as_json:
        _print({"metrics": to_jsonable(reduction.metrics), "cap": to_jsonable(reduction.cap)})
    else:
        _print(console_table(reduction.metrics, reduction.cap, plan))


@command
@click.argument("store")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the report.")
@study_option
@json_option
def report(store: str, out: Path, study_name: str | None, as_json: bool) -> None:
    """Write the figures and tables of a reduced study."""
    from cluster.reduce import open_study, report_to

    files = [str(path) for path in report_to(*open_study(store, study_name), out)]
    _print({"files": files} if as_json else "\n".join(files))


@command
@click.option("--model", required=True, metavar="M", help="A Hugging Face id, a local folder or a config.json.")
@click.option("--device", required=True, metavar="D", help="What every rank computes on: a key of `devices`.")
@click.option("--ep", required=True, metavar="N,...", help="Expert-parallel degrees.")
@click.option("--ep-nodes", default="", metavar="N,...", help="Nodes, one for all or one per degree.  [default: of 8]")
@click.option("--skew", required=True, metavar="STORE|uniform|zipf:S", help="Routing: recorded runs, or drawn.")
@click.option(
    "--placement",
    type=click.Choice(["linear", "round-robin", "balanced"]),
    default="linear",
    show_default=True,
    help="balanced: by the load of the first half of the passes; the other is replayed.",
)
@click.option("--redundant-experts", type=click.IntRange(min=0), default=0, metavar="R", help="Further slots a layer.")
@click.option(
    "--backend",
    type=click.Choice(["all_to_all", "all_gather_reduce_scatter", "all_reduce"]),
    default="all_to_all",
    show_default=True,
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Drawn routing: tokens.")
@click.option("--dtype", metavar="D", help="Of the experts.  [default: as stored]")
@click.option(
    "--dispatch-bytes-per-element",
    type=float,
    default=2.0,
    show_default=True,
    metavar="B",
    help="Of hidden states on their way to experts; 8 bits with a float32 scale per 128: 1.03125.",
)
@click.option("--network-gb-per-s", type=float, default=50.0, show_default=True, help="Between nodes, per device.")
@click.option("--phase", type=click.Choice(["prefill", "decode"]), help="Recorded routing: passes of one phase.")
@click.option("--figures", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Also draw them.")
@study_option
@json_option
def predict(*, model: str, device: str, as_json: bool, **options: Any) -> None:
    """Replay routing under expert-parallel layouts that were not run: imbalance, bytes, time, S-MBU per rank."""
    from cluster.predictions import prediction, prediction_text

    found = prediction(model, device, **options)
    _print(found if as_json else prediction_text(found))


def _error_document(error: MoECapError) -> dict[str, Any]:
    """An error as JSON: what it is, and every problem with key, value and remedy where it has such."""
    problems = error.problems if isinstance(error, StudyError) else (error,) if isinstance(error, ConfigError) else ()
    return {
        "type": type(error).__name__, "message": str(error),
        "problems": [
            {"key": one.key, "value": repr(one.value), "message": one.message, "remedy": one.remedy} for one in problems
        ],
    }  # fmt: skip


def _stored_at(plan: StudyPlan, store: str | None) -> StudyPlan:
    """The plan with its store: what was asked for."""
    from dataclasses import replace

    return replace(plan, store=_absolute(store or plan.store))


def _absolute(root: str) -> str:
    """A store's root that means the same to every process of this machine."""
    return root if "://" in root else str(Path(root).expanduser().absolute())


def _show_progress(progress: Any) -> None:
    from cluster.console import progress_line

    line = progress_line(progress)
    if line is not None:
        click.echo(line, err=True)


def _show_survey(agenda: Agenda, as_json: bool) -> int:
    from cluster.console import placement_table
    from moecap.records import Refusal, to_jsonable

    _show_unmatched_prices(agenda)
    if as_json:
        points = [
            {
                "point_id": point_id, "point": to_jsonable(point), "label": point.label,
                ("refusal" if isinstance(agenda.placements[point_id], Refusal) else "placement"):
                    to_jsonable(agenda.placements[point_id]),
            }
            for point_id, point in agenda.points.items()
        ]  # fmt: skip
        _print({"study": agenda.plan.name, "store": agenda.plan.store, "points": points})
    else:
        _print(placement_table(agenda))
    if agenda.all_refused:
        return WRONG_USE
    return FAILED if any(isinstance(placement, Refusal) for placement in agenda.placements.values()) else 0


def _show_launched(launched: Launched, as_json: bool) -> int:
    from moecap.records import to_jsonable
    from moecap.report import console_table

    outcome, plan = launched.outcome, launched.agenda.plan
    _show_unmatched_prices(launched.agenda)
    files = [str(path) for path in launched.report]
    if launched.nothing_to_run:
        failed = outcome.counts.get("failed", 0)
        all_stored = set(outcome.counts) == {"stored"}
        stored = f"all {len(outcome.states)} runs are stored"
        click.echo(f"nothing to run: {stored if all_stored else _counted(outcome)}", err=True)
        if failed:
            click.echo("--retry-failed runs again what failed", err=True)
    if outcome.left:
        click.echo(f"{outcome.left} runs are left (--max-runs); --resume runs them", err=True)
    if as_json:
        runs = [
            {"point_id": run.point_id, "repeat": run.repeat, "state": state} for run, state in outcome.states.items()
        ]
        cap = to_jsonable(launched.reduction.cap) if launched.reduction else None
        document = {"study": plan.name, "store": plan.store, "states": outcome.counts, "left": outcome.left}
        _print({**document, "runs": runs, "cap": cap, "report": files})
    else:
        if launched.reduction:
            _print(console_table(launched.reduction.metrics, launched.reduction.cap, plan))
        click.echo(_counted(outcome), err=True)
        if files:
            click.echo(f"report: {Path(files[0]).parent}", err=True)
    return 0 if outcome.good else FAILED


def _show_unmatched_prices(agenda: Agenda) -> None:
    from moecap.prices.names import unmatched

    for sentence in unmatched(agenda.plan.prices, agenda.nodes) if agenda.nodes else ():
        click.echo(f"note: {sentence}", err=True)


def _counted(outcome: Outcome) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(outcome.counts.items()))


def _print(result: Any) -> None:
    click.echo(result if isinstance(result, str) else json.dumps(result, indent=1, ensure_ascii=False))
