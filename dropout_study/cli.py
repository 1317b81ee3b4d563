"""The command `dropout-study`: what helps beside `dvc repro`."""

import sys
from pathlib import Path

import click

from dropout_study import files
from dropout_study.errors import StudyError


class _Group(click.Group):
    """A group whose commands turn a `StudyError` into one message and exit status 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except StudyError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Group)
@click.version_option(package_name="dropout-study")
def main() -> None:
    """A versioned study of dropout. The pipeline itself is run by `dvc repro`."""


@main.command()
@click.argument("path", type=click.Path(path_type=Path), default=files.SETTINGS)
def check(path: Path) -> None:
    """Say whether the settings in PATH (params.yaml) are valid, and what they amount to."""
    from dropout_study.settings import load_settings

    settings = load_settings(path)
    study = settings.study
    varied = ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in study)
    click.echo(
        f"{path}: valid. {settings.dataset}, {settings.images_to_train_on} images to train on; "
        f"{len(settings.variants)} variants ({varied}); "
        f"{settings.train.epochs} epochs of batches of {settings.train.batch_size}"
    )


@main.command()
def results() -> None:
    """Print accuracy and loss by dropout, the best variant, and where to look further."""
    from dropout_study import evaluation

    rows = evaluation.read_results()
    click.echo(evaluation.table(rows))
    best = evaluation.choose_best(rows)
    click.echo(
        f"\nBest by validation accuracy ({best.validation_accuracy:.1%}): {best.variant}, "
        f"test accuracy {best.test_accuracy:.1%}, test loss {best.test_loss:.3f}; "
        f"its model is {files.BEST_MODEL}\n\n"
        f"  dvc plots show --open    charts and pictures as a page (the pictures: {files.PLOTS}/)\n"
        f"  dvc metrics show         the figures of every variant ({files.STUDY} has them as a table)\n"
        "  dvc params diff          what has changed in params.yaml since the last commit"
    )
