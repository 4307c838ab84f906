"""`qia3 report`: how its page is made, for a bundle, a model that is not built, or a comparison of two; and where it
goes.

Page and figures come from one object in every output format. If it must fit a device and does not, that is an error
after the page, exit code 3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qia3.console import print_result, progress_on_stderr

if TYPE_CHECKING:
    from qia3.footprint.device import Device
    from qia3.footprint.report import Report
    from qia3.footprint.sections import Page
    from qia3.many.outcome import Outcome


@dataclass(frozen=True)
class Shape:
    """The output format of a report."""

    as_json: bool = False
    html: Path | None = None
    markdown: bool = False


def report_of(folder: Path) -> Report:
    """The footprint report of a bundle, computed again from its files and its manifest."""
    from qia3.bundle.opened import Bundle
    from qia3.footprint.report import build_report

    return build_report(folder, Bundle.open(folder).manifest)


def print_report(folder: Path, shape: Shape, devices: Sequence[Device] = (), must_fit: Collection[str] = ()) -> None:
    """Prints a bundle's report, with estimates for devices. Raises FitError if it does not fit a device that it must
    fit.
    """
    from qia3.footprint.bundle_page import bundle_page
    from qia3.footprint.estimate import check_fits, estimate

    report = report_of(folder)
    found = [estimate(device, report) for device in devices]
    content = report.to_dict() | ({"devices": [asdict(e) for e in found]} if found else {})
    _print_page(bundle_page(report, found), content, shape)
    check_fits(found, must_fit)


def print_training(outcomes: Sequence[Outcome], work: Path, as_json: bool) -> None:
    """Prints how each task ended, as a table if there are several. Raises WorkerError if one failed."""
    from qia3.many.summary import summary
    from qia3.many.tasks import check_failures
    from qia3.printers.terminal import section_text

    where = f"trained vectors are in {work}"
    text = where if len(outcomes) == 1 else f"{section_text(summary(outcomes))}\n\n{where}"
    if any(outcome.failure is None for outcome in outcomes):
        print_result({"work": str(work), "tasks": [outcome.to_json() for outcome in outcomes]}, text, as_json)
    check_failures(outcomes, work)


def print_model(
    what: str, contexts: Sequence[int], batch: int, devices: Sequence[Device], must_fit: Collection[str], shape: Shape
) -> None:
    """Prints the forecast for a model that is not built. Raises FitError."""
    from qia3.footprint.before_page import before_page
    from qia3.footprint.estimate import check_fits
    from qia3.forecast import forecast

    with progress_on_stderr():
        found = forecast(what, contexts, batch, devices)
    _print_page(before_page(found), asdict(found), shape)
    check_fits([one.estimate for one in found.verdicts], must_fit)


def print_comparison(
    things: Sequence[str],
    contexts: Sequence[int],
    batch: int,
    devices: Sequence[Device],
    must_fit: Collection[str],
    shape: Shape,
) -> None:
    """Compares two bundles or models; bundles alone need no build dependencies. Raises FitError if either does not fit."""
    from qia3.bundle.folder import is_or_was_bundle
    from qia3.footprint.before_page import short_name
    from qia3.footprint.compare import compare
    from qia3.footprint.compare_page import compare_page
    from qia3.footprint.estimate import check_fits, estimate

    found: list[Any] = []
    estimates = []
    for what in things:
        if is_or_was_bundle(Path(what)):
            found.append(report_of(Path(what)))
            estimates.append([estimate(device, found[-1]) for device in devices])
            continue
        from qia3.forecast import forecast

        with progress_on_stderr():
            found.append(forecast(what, contexts, batch, devices))
        estimates.append([one.estimate for one in found[-1].verdicts])
    names = [short_name(what) for what in things]
    compared = compare(found, names if len({*names}) == len(names) else list(things), estimates)
    _print_page(compare_page(compared), asdict(compared), shape)
    check_fits([one for each in estimates for one in each], must_fit)


def _print_page(page: Page, figures: Mapping[str, Any], shape: Shape) -> None:
    """Prints to standard output, and writes HTML if a file was named."""
    from qia3.printers.data import page_data
    from qia3.printers.markdown import markdown
    from qia3.printers.terminal import terminal

    if shape.html is not None:
        from qia3.printers.html import html

        shape.html.write_text(html(page), encoding="utf-8")
    if shape.as_json:
        print_result(page_data(page, figures), "", shape.as_json)
    elif shape.markdown:
        click.echo(markdown(page), nl=False)
    else:
        click.echo(terminal(page) if shape.html is None else f"the report is in {shape.html}")
