"""The command line `dropout-study`: what users need beside `dvc repro`."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from dropout_study import files
from dropout_study.console import StudyError, prepare_streams, printable, with_remedy


class _Group(click.Group):
    """A group whose commands turn a `StudyError`, or an `OSError` that has a remedy, into one message and status 1."""

    def invoke(self, context: click.Context) -> object:
        prepare_streams()
        try:
            return super().invoke(context)
        except StudyError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except OSError as error:
            if (message := with_remedy(error)) is None:
                raise
            click.echo(f"error: {message}", err=True)
            sys.exit(1)


def find_project() -> Path:
    """Return the project's directory relative to the current one: the nearest with a dvc.yaml, this one or above.

    Raises `StudyError` if there is none. Below it, paths that the user gives stay relative to the current directory.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise StudyError("the current directory no longer exists; change into the clone of the project") from None
    for directory in (here, *here.parents):
        if os.path.isfile(directory / "dvc.yaml"):  # false, not an error, where a directory may not be read
            return Path(os.path.relpath(directory, here))
    raise StudyError(f"not in a project: no dvc.yaml in {here} or above; change into the clone of the project")


def _default_in_project(file: Path) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    """Return a callback that replaces a path that was not given by `file` of the project."""

    def callback(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
        if path is None and not context.resilient_parsing:  # shell completion wants no errors
            return find_project() / file
        return path

    return callback


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dropout-study")
def main() -> None:
    """Check settings, show and publish results, and classify images of a dropout study.

    `dvc repro` runs the study; `sweep` runs several trainings at a time. The commands work in every directory of the
    project.
    """


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False, callback=_default_in_project(files.SETTINGS))
def check(path: Path) -> None:
    """Check the settings before a run.

    Prints a summary of the settings, or an error for each invalid one. PATH is the settings file, by default the
    project's params.yaml.
    """
    from dropout_study.settings import load_settings

    settings = load_settings(path)
    study = settings.study
    varied = ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in study)
    one_seed = "" if len(study.seeds) > 1 else "; one seed gives no verdict, add more to study.seeds"
    click.echo(
        f"{path}: valid. {settings.dataset}, {settings.images_to_train_on} training images; "
        f"{len(settings.variants)} variants ({varied}); "
        f"{settings.train.epochs} epochs, batch size {settings.train.batch_size}{one_seed}"
    )


@main.command()
def results() -> None:
    """Print the results and the verdict.

    Shows accuracy and loss by dropout rate, how far each rate is from the leader, which rates may be the best and
    which are worse, and the best single run. metrics/verdict.md has the same; docs/statistics.md explains it.
    """
    from dropout_study import report
    from dropout_study.results import choose_best, read_results
    from dropout_study.verdict import read_verdict

    os.chdir(find_project())
    try:
        rows = read_results()
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"{files.STUDY}: damaged, or written by another version of the project ({type(error).__name__}: {error}); "
            "`dvc repro` makes it again"
        ) from None
    verdict = read_verdict()
    click.echo(f"{report.table(verdict)}\n\n{report.paragraph(verdict)}")
    versions = report.other_versions(verdict.machines)
    if versions:
        click.echo(
            f"\nThese results were computed with other versions: {', '.join(versions)}. DVC does not compare versions; "
            "`dvc repro --force` computes everything again."
        )
    if [row.variant for row in rows] != _current_variants():
        click.echo(f"\nThe variants in {files.SETTINGS} have changed since; run `dvc repro` to update the results.")
    best = choose_best(rows)
    if best is None:
        model = "Every run diverged, so there is no best model."
    else:
        missing = "" if files.BEST_MODEL.exists() else " (missing; run `dvc repro` to make it)"
        model = (
            f"Best single run by validation accuracy ({100 * best.validation_accuracy:.1f} %): {best.variant}, "
            f"test accuracy {100 * best.test_accuracy:.1f} %, test loss {best.test_loss:.3f}\n"
            f"Its model: {files.BEST_MODEL}{missing}"
        )
    click.echo(
        f"\n{model}\n\n"
        f"  dvc plots show --open         all charts as a page (pictures: {files.PLOTS}/)\n"
        "  dropout-study predict IMAGE   classify an image with that model\n"
        f"  dvc metrics show              accuracy and loss of every variant (as a table: {files.STUDY})\n"
        "  dvc params diff               settings changed since the last commit"
    )


def _current_variants() -> list[str]:
    """Return the keys of the variants in params.yaml; none if it is invalid."""
    from dropout_study.settings import load_settings

    try:
        return [variant.key for variant in load_settings().variants]
    except StudyError:
        return []


@main.command()
@click.argument("name")
def publish(name: str) -> None:
    """Add the runs of the finished study to results/NAME.

    Keeps settings, tables, verdict, pictures and the scores of each test image, and records commit, machine and
    training time of each run, so that they outlive the next change of params.yaml. Commit the directory. Runs that are
    published there stay, or are replaced by the same run. Refuses results that are not up to date, and runs whose
    settings, other than rates, seeds and optimizers, are not those of the published ones.
    """
    from dropout_study.published.publication import publish

    os.chdir(find_project())
    click.echo(f"published: {publish(name)}/; `git add` it, and `make results-page` writes docs/results.md again")


def _url(context: click.Context, _: click.Parameter, repository: str | None) -> str | None:
    """Return what names a Git repository on every machine."""
    from dropout_study.sweep import remote

    return repository if repository is None or context.resilient_parsing else remote.url(repository)


scratch_option = click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    # Not `tempfile.gettempdir`, which writes a file, and fails on a full disk, for every command.
    default=Path(os.environ.get("TMPDIR") or "/tmp") / f"dropout-study-{os.getuid()}",
    show_default=True,
    help="Where a machine of a cluster makes clones.",
)
checkpoints_option = click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    help="A directory that the machines share, so that another one can resume a training.  [default: in SCRATCH]",
)


@main.group(invoke_without_command=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 10_000),
    show_default="2; with --address, as many as the cluster has room for",
    help="Trainings at a time.",
)
@click.option("--keep-going", is_flag=True, help="If a variant fails, still start the others; Ray always does.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained and how long it should take.")
@click.option("--address", help="Train by the Ray cluster at this address, such as auto. Needs --repository.")
@click.option("--repository", callback=_url, help="With Ray: the URL of a Git repository that every machine reaches.")
@scratch_option
@checkpoints_option
@click.pass_context
def sweep(
    context: click.Context,
    workers: int | None,
    keep_going: bool,
    dry_run: bool,
    address: str | None,
    repository: str | None,
    scratch: Path,
    checkpoints: Path | None,
) -> None:
    """Train several variants at a time, here or on other machines.

    Like `dvc repro`, with the same results: trains what is missing or out of date, each variant in a clone of its own,
    then evaluates and draws. Ctrl-C keeps finished trainings, and the rest resumes next time. `dropout-study status` in
    another terminal shows how far it is.

    The commands below are for machines that share a Git repository and a DVC remote: docs/cluster.md.
    """
    from dropout_study.sweep.driver import sweep
    from dropout_study.sweep.ray_pool import RayOptions

    default = ParameterSource.DEFAULT
    given = [name for name in context.params if context.get_parameter_source(name) is not default]
    if context.invoked_subcommand:
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is not for {context.invoked_subcommand}")
        return
    if (address is None) != (repository is None):
        raise click.UsageError("--address and --repository go together: a Ray cluster, and what its machines share")
    if address is None and {"scratch", "checkpoints"} & {*given}:
        raise click.UsageError("--scratch and --checkpoints need --address")
    os.chdir(find_project())
    ray = None if address is None or repository is None else RayOptions(address, repository, scratch, checkpoints)
    try:
        sweep(workers, ray, keep_going=keep_going, dry_run=dry_run)
    except KeyboardInterrupt:
        click.echo("interrupted; what is trained is kept, run the same command to resume", err=True)
        sys.exit(130)


@sweep.command()
@click.argument("repository", callback=_url)
def send(repository: str) -> None:
    """Push a snapshot of the workspace and the data.

    The snapshot has every file that Git does not ignore, untracked ones too: look at `git status` first. REPOSITORY is
    the URL or the name of a Git remote that every machine reaches. Data goes to DVC's default remote.
    Prints the name of the sweep, and the commands that train and collect it.
    """
    from dropout_study.sweep.driver import send

    os.chdir(find_project())
    send(repository)


@sweep.command()
@click.argument("repository", callback=_url)
@click.argument("name")
@click.argument("key", required=False)
@click.option("--index", type=click.IntRange(0), help="The place of the variant among those of the sweep, from 0.")
@scratch_option
@checkpoints_option
def worker(
    repository: str, name: str, key: str | None, index: int | None, scratch: Path, checkpoints: Path | None
) -> None:
    """Train one variant of a sweep that was sent.

    NAME is that of the sweep, KEY or --index the variant. Needs no clone of the project. What is pushed already is not
    trained again, so it does no harm to call it twice.
    """
    from dropout_study.sweep import remote

    variant = key if index is None else index
    if variant is None or None not in (key, index):
        raise click.UsageError("name the variant either by KEY or by --index")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what schedulers send before they kill
    try:
        remote.work(repository, name, variant, scratch, checkpoints)
    except KeyboardInterrupt:
        click.echo("interrupted; the next call resumes from the checkpoint", err=True)
        sys.exit(130)


@sweep.command()
@click.argument("repository", callback=_url)
@click.argument("name")
def collect(repository: str, name: str) -> None:
    """Take in what the workers of a sweep pushed, then evaluate.

    If variants are missing, takes in the existing ones; call it again later.
    """
    from dropout_study.sweep.driver import collect

    os.chdir(find_project())
    collect(repository, name)


@sweep.command()
@click.argument("repository", callback=_url)
@click.argument("name")
def forget(repository: str, name: str) -> None:
    """Give up a sweep that was sent.

    Removes what `send` and the workers pushed of it to the Git repository; no worker trains more of it. Outputs stay in
    the DVC remote, where the workers of another sweep find them.
    """
    from dropout_study.sweep.driver import forget

    os.chdir(find_project())
    forget(repository, name)


@main.command()
def status() -> None:
    """Show how far the trainings are.

    Of a sweep: each variant's state, worker and last epoch, and the time left. Of `dvc repro`: which variants are
    trained, and the one that runs. `dvc status` says whether results are up to date.
    """
    from dropout_study.sweep.status import show_status

    os.chdir(find_project())
    show_status()


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path))
@click.option(
    "--model",
    "model_file",
    type=click.Path(readable=False, path_type=Path),
    callback=_default_in_project(files.BEST_MODEL),
    show_default=f"{files.BEST_MODEL} of the project",
    help="A Keras model (.keras) that takes pixels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, errors of files included, instead of the table.")
def predict(images: tuple[Path, ...], model_file: Path, as_json: bool) -> None:
    """Classify images with the best model.

    IMAGES are files, or directories of them: BMP, GIF, JPEG, PNG, PPM, TIFF and WebP.
    Prints the three most probable classes of each. The middle of an image is cut out in the shape that the model takes,
    and scaled; transparent parts are laid on white.

    A file that cannot be read is an error line, the others are still classified, and the exit status is 1. If the model
    is missing or unfit, there is only that error, with --json too.
    """
    from dropout_study import prediction
    from dropout_study.images import find_images

    model = prediction.load_model(model_file)
    paths = find_images(images)
    names = [printable(path) for path in paths]
    classes = {name: printable(name) for name in model.classes}
    name_width, class_width = max(map(len, names)), max(map(len, classes.values()))
    predictions = []
    for name, result in zip(names, prediction.predict(model, paths), strict=True):
        predictions.append(result)
        if result.error is not None:
            click.echo(f"error: {name}: {result.error}", err=True)
        elif not as_json:
            guesses = (f"{classes[guess.name]:<{class_width}} {guess.probability:6.1%}" for guess in result.guesses)
            click.echo(f"{name:<{name_width}}   {'   '.join(guesses)}")
    if as_json:
        content = {"model": str(model_file), "images": [result.to_json() for result in predictions]}
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    if any(result.error is not None for result in predictions):
        sys.exit(1)
