"""The section of the configuration about the data: where the rows are, and how they become batches."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from rankmixer.pipeline.base.local_path import local_path
from rankmixer.pipeline.files.files import OnBadFile
from rankmixer.pipeline.read.sampling import Sampling
from rankmixer.pipeline.schema.features import Strict

NonNegativeFloat = Annotated[float, Field(ge=0)]


class StreamConfig(Strict):
    """Files that arrive while a run goes on."""

    poll_seconds: PositiveFloat = Field(30.0, description="between two looks for new files")
    idle_seconds: NonNegativeFloat | None = Field(
        None, description="end when no file has come for so long; None: go on for ever"
    )


class DataConfig(Strict):
    """Where the rows are and how they become batches."""

    train: str | list[str] = Field(description="Parquet files: path, glob, directory or URL, or a list of them")
    evaluate: str | list[str] | None = Field(None, description="rows for evaluation during and after training")
    test: str | list[str] | None = Field(None, description="rows read once, after training, with the best weights")
    batch_size: PositiveInt = Field(2048, description="global batch size, divided by the number of ranks")
    evaluate_batch_size: PositiveInt = Field(8192, description="global batch size of evaluation and prediction")
    window_rows: PositiveInt = Field(262_144, description="rows shuffled together; memory grows with it")
    threads: PositiveInt = Field(2, description="threads that prepare batches ahead, on each rank")
    stream: StreamConfig | None = Field(
        None, description="train once on each file of data.train, and on those that arrive there later"
    )
    sample: Sampling | None = Field(None, description="train on a share of the rows, others in every epoch")
    on_bad_file: OnBadFile = Field(
        "fail", description="a file that cannot be read: fail, or skip: set aside and reported in bad_files.jsonl"
    )
    timeout_seconds: PositiveFloat | None = Field(
        None, description="limit on reading one footer or row group; default: half of run.timeout_seconds"
    )
    manifests: str | None = Field(
        None, description="directory that keeps what the footers of many files said; default: in the user's cache"
    )

    @field_validator("manifests")
    @classmethod
    def _on_a_local_disk(cls, path: str | None) -> str | None:
        return path and local_path(path, "hosts may share a folder, or have one each")
