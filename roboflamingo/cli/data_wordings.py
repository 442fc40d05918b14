"""`roboflamingo data wordings`: the reference's sentences for the official chains as sentences by task."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace

from calvin_eval.benchmark.chains import chains as official_chains
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, write_text


def wordings_options(parser: ArgumentParser) -> None:
    """Adds what `data wordings` takes."""
    parser.add_argument("path", type=str, help="the reference's list of five sentences for every official chain")
    parser.add_argument("--out", type=str, required=True, help="a file for data.wordings")


def wordings(options: Namespace) -> None:
    """Turns sentences for the official chains into sentences by task.

    Raises:
        UserError: the file is no such list.
    """
    path, chains = Path(options.path), official_chains()
    held = read_json(path, "five sentences for every chain")
    if not isinstance(held, list) or len(held) > len(chains):
        raise UserError(f"{path} must hold a list of at most {len(chains)} lists of five sentences, one for each chain")
    found: dict[str, dict[str, None]] = {}
    for number, (said, chain) in enumerate(zip(held, chains, strict=False)):
        if not isinstance(said, list) or len(said) != len(chain.tasks) or not all(isinstance(s, str) for s in said):
            raise UserError(f"{path}: chain {number} needs {len(chain.tasks)} sentences, not {said!r:.80}")
        for task, sentence in zip(chain.tasks, said, strict=True):
            found.setdefault(task, {})[sentence.strip()] = None
    by_task = {task: list(sentences) for task, sentences in sorted(found.items())}
    write_text(Path(options.out), yaml.safe_dump(by_task, allow_unicode=True))
    print(f"{options.out}: {sum(map(len, by_task.values()))} sentences for {len(by_task)} tasks")
