"""The schema that a model was trained with: saved beside its checkpoints, used by all that loads them.

    CHECKPOINTS/schema/schema.yaml        the feature schema, with numbers where it said to learn them
                       vocabulary/*.txt   copies of the vocabularies that it names
                       asked.json         the schema as it was given, to compare with

The folder is a feature schema like any other: `feature_schema=CHECKPOINTS/schema/schema.yaml` needs no other file.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import yaml

from rankmixer.launch.config.config import Config, leaves
from rankmixer.launch.rows.paths import checkpoints_of, opening
from rankmixer.pipeline.base.collective import on_rank_0
from rankmixer.pipeline.base.storage import open_storage, reading, writing
from rankmixer.pipeline.learn.learn import learn
from rankmixer.pipeline.schema.features import Ids
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.schema.vocabulary import read_text, write_vocabulary

HEADER = """\
# The feature schema of the run, written by `rankmixer train` with what it learnt from the training rows.
"""


def with_schema_to_train(config: Config) -> Config:
    """The configuration with everything learnt: now, or by the run that it resumes. Collective.

    Raises:
        ValueError: the run was trained with another schema, or nothing can be learnt.
    """

    def prepare() -> None:
        if not checkpoints_of(config).names():
            learnt = schema = config.feature_schema
            if config.data.stream is None or schema.to_learn:  # of a stream there may be no file yet
                learnt = learn(schema, config.data.train, **opening(config))
            with writing(open_storage(_directory(config))[0], _directory(config)):
                save_schema(_directory(config), schema.contents(), learnt)

    on_rank_0("cannot learn from data.train", prepare)
    return with_trained_schema(config)


def with_trained_schema(config: Config) -> Config:
    """The configuration with the schema that the run was trained with.

    Raises:
        ValueError: it was another one, or what it leaves to be learnt has not been learnt.
    """
    schema = load_schema(_directory(config), config.feature_schema)
    return config.model_copy(update={"feature_schema": schema})


def _directory(config: Config) -> str:
    return f"{checkpoints_of(config).directory}/schema"


class SchemaKeeper:
    """Writes the schema of a run again where somebody has removed it with the checkpoints, which need it.

    Args:
        config: with the schema that the run is trained with.
    """

    def __init__(self, config: Config) -> None:
        self.directory = _directory(config)
        self._learnt = config.feature_schema
        self._asked: Any = None
        if self._stands():
            self._asked = json.loads(read_text(f"{self.directory}/asked.json"))

    def keep(self) -> None:
        """Write it, if it stood there at first and does no longer."""
        if self._asked is not None and not self._stands():
            save_schema(self.directory, self._asked, self._learnt)

    def _stands(self) -> bool:
        filesystem, root = open_storage(self.directory)
        filesystem.invalidate_cache()
        return bool(filesystem.exists(f"{root}/schema.yaml"))


def save_schema(directory: str, asked: Any, learnt: Schema) -> None:
    """Write a schema and its vocabularies into a directory; what stands there, of a run without a checkpoint, goes.

    Args:
        directory: path or URL.
        asked: contents of the schema as it was given.
        learnt: the schema to write.
    """
    filesystem, root = open_storage(directory)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)
    filesystem.makedirs(f"{root}/vocabulary")
    lines = [HEADER + "features:"]
    paths: dict[str, str] = {}
    for name, feature in learnt.features.items():
        tree = feature.model_dump(mode="json", exclude_defaults=True)
        if isinstance(feature, Ids) and feature.vocabulary is not None:
            if feature.vocabulary not in paths:
                paths[feature.vocabulary] = f"vocabulary/{quote(name, safe='')}.txt"
                with filesystem.open(f"{root}/{paths[feature.vocabulary]}", "wb") as file:
                    write_vocabulary(file, feature.words)
            tree["vocabulary"] = paths[feature.vocabulary]
        lines.append(_line(name, tree))
    lines += [
        "labels:",
        *(_line(name, label.model_dump(exclude_defaults=True)) for name, label in learnt.labels.items()),
    ]
    if learnt.weight is not None:
        lines.append(_line("weight", learnt.weight).strip())
    filesystem.pipe_file(f"{root}/asked.json", json.dumps(asked, indent=1).encode())
    filesystem.pipe_file(f"{root}/schema.yaml", ("\n".join(lines) + "\n").encode())  # last: then the rest is whole


def load_schema(directory: str, asked: Schema) -> Schema:
    """What `save_schema` wrote, if it was made from `asked`; `asked` itself if nothing stands there.

    Raises:
        ValueError: it was made from another schema, the message names the keys; or it is missing though it is needed.
    """
    filesystem, root = open_storage(directory)
    with reading(directory):
        stands = filesystem.exists(f"{root}/schema.yaml")
    if not stands:
        if asked.to_learn:
            raise ValueError(
                f"{directory}: found no schema; expected what {', '.join(asked.to_learn)} learnt in training; train "
                "first, or copy the folder with the checkpoints"
            )
        return asked
    saved = Schema.load(f"{directory}/schema.yaml")
    here, there = asked.contents(), json.loads(read_text(f"{directory}/asked.json"))
    if here not in (there, saved.contents()):
        old, new = leaves(there), leaves(here)
        changed = [
            f"{key} = {old.get(key)} there, {new.get(key)} here"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        raise ValueError(
            f"{directory}: the run was trained with another feature schema: {'; '.join(changed)}; use the one it was "
            f"trained with (feature_schema={directory}/schema.yaml), or another run.directory"
        )
    return saved


def _line(name: str, value: Any) -> str:
    """One line of YAML."""
    return "  " + yaml.safe_dump({name: value}, default_flow_style=True, width=float("inf"), sort_keys=False)[1:-2]
