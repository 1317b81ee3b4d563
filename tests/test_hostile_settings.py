"""Settings from somebody who means harm, generated: refused by `dropout-study check` in words, or harmless."""

import copy
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from dvc.utils.serialize import parse_yaml  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dropout_study.cli import main
from dropout_study.settings import load_settings
from tests.clones import PROJECT

GOOD_TEXT = (PROJECT / "presets/quick.yaml").read_text(encoding="utf-8")
GOOD: dict[str, Any] = YAML(typ="safe").load(GOOD_TEXT)
# What a variant may be called: nothing that means anything to a shell, to Git, or in a path.
HARMLESS_KEY = re.compile(r"(sgd|adadelta|adam)-[0-9.e-]+-[0-9]+")


class Raw(str):
    """YAML as it is written."""


def yaml(node: Any) -> str:
    """Return a value as YAML in one line; text is quoted as in JSON, `Raw` is not."""
    match node:
        case Raw():
            return str(node)
        case dict():
            return "{" + ", ".join(f"? {yaml(key)} : {yaml(value)}" for key, value in node.items()) + "}"
        case list():
            return "[" + ", ".join(map(yaml, node)) + "]"
        case float() if not math.isfinite(node):
            return ".nan" if math.isnan(node) else f"{'-' * (node < 0)}.inf"
    return json.dumps(node)


COMMANDS = [
    *("$(touch PWNED)", "`touch PWNED`", "; touch PWNED", "| touch PWNED", "&& touch PWNED #", "> PWNED"),
    *("\ntouch PWNED\n", "\r\ntouch PWNED", "'; touch PWNED; '", '"; touch PWNED; "', "\\$(touch PWNED)"),
    *("$IFS$(touch${IFS}PWNED)", "${study.seeds}", "${item.optimizer}", "$(touch\tPWNED)", "\x00", "\x1b[31m", "\x7f"),
    *("{{touch PWNED}}", "%(touch)s", "!touch PWNED", "--exec=touch PWNED", "-h", "${oc.env:HOME}"),
]
PATHS = [
    *("../../PWNED", "../../../../etc/passwd", "/etc/passwd", "~/PWNED", ".", "..", "a/../../b", "\\\\host\\share"),
    *(
        "x" * 300,
        "",
        " ",
        "con",
        "file:///etc/passwd",
        "a\u202eb",
        "\ufeff",
        "*",
        "?",
        "@",
        "refs/heads/main",
        "a.lock",
    ),
]
TAGS = [
    *("!!python/object/apply:os.system [touch PWNED]", "!!python/object/new:os.system [touch PWNED]"),
    *("!!python/object:os.system {}", "!!python/name:os.system", "!!python/module:os", "!!python/tuple [0.1]"),
    *("!!bool x", "!!int ''", "!!int _", "!!float ''", "!!float .", "!!binary '*'", "!!binary é", "!!timestamp x"),
    *("!!null x", "!!set {a}", "!!omap [a: b]", "!!omap 1", "!!pairs [a: b]", "!!str {a: 1}", "!!seq x", "! x", "!x y"),
    *("*undefined", "&a [*a]", "&a {*a : *a}", "[&a b, *a]", "{<<: {a: b}}", "{<<: 1}", "{<<: [1]}", "{=: 1}", "<<"),
    *("2001-01-01", "2001-99-99", "2001-01-01T00:00:00+99:99", "1:60:99", "010", "0o9", "1_0", "+.5", "1e", "~", "yes"),
    *("0x" + "f" * 20_000, "1" * 5_000, "1e999", "-1e999", "1e-999", "-0.0", "[" * 500 + "]" * 500, "{a: " * 400, "\t"),
    *('"\\ud800"', '"\\e[31m"', "'unclosed", "[unclosed", "a: b", "- a", "? a", "# a", "...", "---", "%YAML 9.9", ","),
]
NOISE = [
    "\ufeff",
    "\r\n",
    "\r",
    "\t",
    "\n\t",
    "\x85",
    "\u2028",
    "\x00",
    "\ud800",
    "&a ",
    "*a ",
    "<<: ",
    "? ",
    ": ",
    "- ",
    "!",
    "|\n",
]
hostile_text = st.builds(
    lambda before, text, after: before + text + after,
    st.sampled_from(["", "sgd", "0.5", "0", " "]),
    st.sampled_from(COMMANDS + PATHS) | st.text(max_size=12),
    st.sampled_from(["", "sgd", "\n", ".keras"]),
).filter(lambda text: text not in ("sgd", "adadelta", "adam"))
# Neither rates nor seeds nor learning rates.
hostile_number = st.sampled_from([math.nan, math.inf, -math.inf, -0.0, -1, -1e-300, 10**400, True, False, None])
large_number = st.integers(2**32, 10**30) | st.floats(1, allow_infinity=False)
scalar = hostile_text | hostile_number
hostile = scalar | st.lists(scalar, max_size=3) | st.dictionaries(hostile_text, scalar, max_size=2)


class Case(NamedTuple):
    """A settings file, and the key that the error has to begin with; None if the file may be harmless."""

    document: str | bytes
    key: str | None


def paths(node: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting and of every section."""
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def with_value(path: Sequence[Any], value: Any, key: Any = None) -> str:
    """Return the good settings with another value at `path`, and there under another `key` if there is one."""
    document = copy.deepcopy(GOOD)
    section = document
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    if key is not None:
        section[key] = section.pop(path[-1])
    return yaml(document)


def with_noise(places: list[tuple[int, str]]) -> bytes:
    """Return the good settings, comments and all, with texts inserted."""
    for place, text in places:
        document = GOOD_TEXT[: place % len(GOOD_TEXT)] + text + GOOD_TEXT[place % len(GOOD_TEXT) :]
    return document.encode("utf-8", "surrogatepass")


everywhere = st.sampled_from([*paths(GOOD)])
items = st.sampled_from(["optimizers", "dropouts", "seeds"])
cases = st.one_of(
    st.builds(
        lambda name, index, value: Case(with_value(["study", name, index], value), f"study.{name}[{index}]"),
        items,
        st.just(0),
        hostile | large_number,
    ),
    st.builds(lambda name, value: Case(with_value(["study", name], value), f"study.{name}"), items, scalar),
    st.builds(
        lambda name, value: Case(with_value(["train", "learning_rate", name], value), f"train.learning_rate.{name}"),
        st.sampled_from(["sgd", "adadelta", "adam"]),
        hostile,
    ),
    st.builds(
        lambda path, key, value: Case(with_value(path, value, key), ".".join(path[:-1])),
        everywhere,
        hostile_text,
        hostile,
    ),
    st.builds(lambda path, tag: Case(with_value(path, Raw(tag)), None), everywhere, st.sampled_from(TAGS)),
    st.builds(lambda path, tag: Case(with_value(path, 1, Raw(tag)), None), everywhere, st.sampled_from(TAGS)),
    st.builds(lambda name, tag: Case(with_value(["study", name], [Raw(tag)]), None), items, st.sampled_from(TAGS)),
    st.builds(
        lambda places: Case(with_noise(places), None),
        st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(NOISE + COMMANDS)), min_size=1, max_size=3),
    ),
    st.builds(lambda document: Case(document, None), st.binary(max_size=40) | st.text(max_size=40)),
)


def check(document: str | bytes) -> tuple[int, list[str]]:
    """Run `dropout-study check` on a settings file, and return its status and the problems that it names.

    Whatever happens, no program is started, nothing ends in a traceback, and no line does anything to a terminal.
    """
    path = Path("hostile.yaml")
    path.write_bytes(document if isinstance(document, bytes) else document.encode("utf-8", "surrogatepass"))
    done = CliRunner().invoke(main, ["check", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())
    assert not Path("PWNED").exists()
    if done.exit_code == 0:
        assert done.stdout.startswith(f"{path}: valid. ")
        assert all(HARMLESS_KEY.fullmatch(variant.key) for variant in load_settings(path).variants)
        return 0, []
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {path}: ")
    assert len(done.stderr) < 20_000
    return 1, done.stderr.split(f"{path}: ")[1:]


@pytest.fixture(scope="module", autouse=True)
def _in_temporary_directory_without_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    def start(*command: Any, **_: Any) -> None:
        raise AssertionError(f"a program is started: {command}")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("hostile"))
        patch.setattr(subprocess, "Popen", start)
        patch.setattr("os.system", start)
        yield


def refused_or_harmless(case: Case) -> None:
    status, problems = check(case.document)

    if case.key is not None:
        assert status == 1
        assert any(problem.startswith((case.key, "not valid YAML")) for problem in problems)
    if status == 0:
        text = Path("hostile.yaml").read_text(encoding="utf-8")
        study = parse_yaml(text, "hostile.yaml")["study"]
        keys = ["-".join(map(str, values)) for values in product(*study.values())]
        assert [variant.key for variant in load_settings(Path("hostile.yaml")).variants] == keys  # as DVC reads it


@settings(max_examples=1_000, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases)
def test_check_refuses_1_000_hostile_settings_or_they_are_harmless(case: Case) -> None:
    refused_or_harmless(case)


@pytest.mark.stress
@seed(int(os.environ["STRESS_SEED"]))
@settings(max_examples=30_000, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases)
def test_check_refuses_30_000_hostile_settings_or_they_are_harmless(case: Case) -> None:
    refused_or_harmless(case)


def test_check_refuses_merged_mappings_that_would_fill_the_memory() -> None:
    merged = [f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}, *b{i - 1}, *b{i - 1}]}}\n" for i in range(1, 30)]

    status, problems = check(f"b0: &b0 {{a: 1}}\n{''.join(merged)}{GOOD_TEXT}")

    assert (status, problems) == (1, ["116 aliases (*name), at most 20 are allowed; write the values out\n"])


def test_check_takes_aliases_and_merge_keys_for_what_they_stand_for() -> None:
    text = re.sub("learning_rate: .*", "learning_rate: {<<: {sgd: 0.1, adam: 0.2}, adadelta: 0.3}", GOOD_TEXT)
    text = re.sub("units: .*", "units: *filters", re.sub("filters: .*", "filters: &filters [8, 16]", text))

    status, _ = check(text)

    loaded = load_settings(Path("hostile.yaml"))
    assert status == 0
    assert (loaded.network.units, loaded.train.learning_rate.sgd) == ([8, 16], 0.1)


@pytest.mark.parametrize("tag", TAGS)
def test_check_refuses_every_tag_as_a_seed_or_it_is_a_whole_number(tag: str) -> None:
    status, problems = check(with_value(["study", "seeds"], [Raw(tag)]))

    seeds = {"010": [10], "1_0": [10]}
    if tag in seeds:
        assert status == 0
        assert load_settings(Path("hostile.yaml")).study.seeds == seeds[tag]
    else:
        assert status == 1
        assert problems
