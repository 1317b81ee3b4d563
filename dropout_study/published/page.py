"""docs/results.md: what the published studies say about the article's claims. `make results-page` writes it.

page.md.jinja has the words; every number and every judgement in it comes from the tables beside it.
"""

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dropout_study import console, files, report
from dropout_study.published import claims, tables
from dropout_study.published.publication import DIRECTORY, PICTURES, Published, read_published, renew
from dropout_study.results import finished
from dropout_study.verdict import Machine

PAGE = Path("docs/results.md")
README = Path("README.md")
BEGIN, END = "<!-- results -->", "<!-- /results -->"  # around the headline
TEMPLATE = Path(__file__).with_name("page.md.jinja")
AUTHOR = DIRECTORY / "article-adadelta.csv"  # what the article's notebook printed
CLIPPED_LOSS = DIRECTORY / "clipped-loss.csv"  # one epoch by the loss of Keras 2 and by that from logits
LINKS = Path("..") / DIRECTORY  # from the page

# The studies that the page is about.
MAIN = "cifar10-small"
LONGER = "cifar10-longer"  # the main study at some of its rates, with more epochs
# With the article's settings: as its notebook ran it, at less length or in another precision, and as its listing reads.
ARTICLE = ("article-notebook", "article-notebook-float32", "article-notebook-25", "article")
SIZES = ("cifar10-1000", "cifar10-3000", MAIN, LONGER)  # of the training set, smallest first
ARTICLE_RUNS = "The article trained once per rate, with 50,000 images, batches of 512 and 50 epochs"

# What is in the archives that studies were computed from, by SHA-256.
ARCHIVES = {
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "CIFAR-10 as its authors publish it",
    "1c5aab95c1ca78e32ee31fc15c969da3d814bf41155ffb33cc2803d15124bb3e": (
        "a JPEG-recompressed copy of CIFAR-10 (all 60,000 images, official labels and order; mean absolute pixel error "
        "5.8 of 255), not the archive that you download: your figures will differ a little"
    ),
}


def claim_rows(study: Published) -> list[tables.Row]:
    """Return the article's claims, numbered, with the verdict on each and the reason."""
    return [
        (i, claim, f"**{verdict}**", reason) for i, (claim, (verdict, reason)) in enumerate(claims.judgements(study), 1)
    ]


def context(published: Mapping[str, Published], author: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the values of the page's template: the published studies, the author's table, and functions of them."""
    return {
        "main": published[MAIN],
        "longer": published[LONGER],
        "sizes": [published[name] for name in SIZES],
        "article": [published[name] for name in ARTICLE if name in published],
        "studies": published.values(),
        "author": author,
        "starts": files.read_csv(CLIPPED_LOSS),
        "article_runs": ARTICLE_RUNS,
        "links": LINKS,
        "picture": lambda study, name: f"{LINKS}/{study.name}/{PICTURES}/{name}.png",
        "claim_rows": claim_rows,
        "conditions": conditions,
        "facts": facts,
        "claims": claims,
        "report": report,
        "tables": tables,
    }


def facts(study: Published) -> list[str]:
    """Return how a study was computed, a line a subject."""
    settings, origins = study.settings, study.provenance["variants"].values()
    alive = {run.variant for run in finished(study.results)}
    diverged = len(study.results) - len(alive)
    trained = {key: origin["training"] for key, origin in study.provenance["variants"].items() if origin["training"]}
    # A run that diverges ends early, and its speed means nothing.
    speeds = [speed["images_per_second"] for key, speed in trained.items() if key in alive]
    lines = [
        f"{report.count(study.results, 'run')}, {diverged or 'none'} diverged; {settings.images_to_train_on:,} "
        f"training images, {settings.train.epochs} epochs, batches of {settings.train.batch_size}",
        *(machine(kind, len(study.results)) for kind in study.verdict.machines),
    ]
    if speeds:
        seconds = sum(speed["seconds"] for speed in trained.values())
        range_of = f", {min(speeds):,.0f} to {max(speeds):,.0f}" if len(speeds) > 1 else ""
        added_up = ", added up" if len(trained) > 1 else ""
        lines.append(
            f"{console.duration(seconds)} for {report.count(trained, 'training')}{added_up}; images per second: "
            f"median {statistics.median(speeds):,.0f}{range_of}"
        )
    commits = report.listed(sorted({origin["commit"][:10] for origin in origins}))
    dates = report.listed(sorted({origin["date"] for origin in origins}))
    lines.append(f"commit {commits}, published on {dates}")
    archive = study.provenance["archive"]
    if archive:
        what = ARCHIVES.get(archive, "which this project does not know")
        lines.append(f"images: archive with the SHA-256 {archive}, {what}")
    return lines


def machine(kind: Machine, runs: int) -> str:
    """Return a kind of machine with its versions, and how many of the `runs` were computed on it if not all."""
    provenance = kind.provenance
    device = provenance["processor"] if provenance["device"] == "CPU" else provenance["device"]
    threads = f"{provenance['threads']} thread{'s' * (provenance['threads'] > 1)}"
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    share = f"{len(kind.variants)} of {runs} runs: " if len(kind.variants) < runs else ""
    sets = " ".join(provenance["instruction_sets"])
    return f"{share}{device} with {sets}, {threads}, {provenance['system']}; {versions}"


def page(published: Mapping[str, Published], author: Sequence[Mapping[str, str]]) -> str:
    """Return docs/results.md: Markdown, from the published studies by name and the rows of the author's table."""
    template = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(context(published, author))
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"  # a table ends with a newline of its own


def images_of(study: Published) -> str:
    """Return in a few words what a study's images are."""
    return ARCHIVES.get(study.provenance["archive"], "an archive that this project does not know").partition(" (")[0]


def conditions(study: Published) -> str:
    """Return under which conditions a study was run, in a sentence."""
    train = study.settings.train
    rates = [f"{getattr(train.learning_rate, name):g} with {name}" for name in study.settings.study.optimizers]
    falling = f", times {train.learning_rate_decay:g} after each epoch" if train.learning_rate_decay < 1 else ""
    return (
        f"{study.settings.images_to_train_on:,} training images of {images_of(study)}, {train.epochs} epochs, batches "
        f"of {train.batch_size}, a learning rate of {report.listed(rates)}{falling}"
    )


def headline(main: Published, longer: Published) -> str:
    """Return what the README shows of the main study and of the longer one: the answer and the main table."""
    best = claims.best_by_all(main.verdict, main.settings.train.epochs)
    by_loss, more_epochs = claims.article_by_loss(main.verdict), tables.with_more_epochs(longer)
    paragraphs = (
        f"{best} Is {claims.ARTICLE_RATE} the best? {claims.answer_to_article(main.verdict)} "
        f"{' '.join(filter(None, (by_loss, more_epochs)))}",
        f"These are {report.count(main.results, 'run')}: {conditions(main)}. {ARTICLE_RUNS}.",
    )
    answer = "\n\n".join(textwrap.fill(paragraph, 120) for paragraph in paragraphs)
    return f"{answer}\n\n```text\n{report.table(main.verdict)}\n```"


def with_headline(readme: str, shown: str) -> str:
    """Return the text of the README with the headline `shown` between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{shown}\n{end}{after}"


def main() -> None:
    """Write docs/results.md, the README's headline, and the words and pictures of each published study."""
    published = {name: renew(DIRECTORY / name) for name in read_published()}
    files.write_bytes(PAGE, page(published, files.read_csv(AUTHOR)).encode())
    readme = with_headline(README.read_text(encoding="utf-8"), headline(published[MAIN], published[LONGER]))
    files.write_bytes(README, readme.encode())
    console.say(f"written: {PAGE}, the results in {README}, the verdicts and pictures in {DIRECTORY}/")


if __name__ == "__main__":
    main()
