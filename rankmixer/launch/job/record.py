"""What a run tells of itself: log.jsonl and TensorBoard, trackers, the run's page. Rank 0 speaks for all."""

from __future__ import annotations

import socket
from dataclasses import asdict

from rankmixer.launch.config.config import Config, dump_config
from rankmixer.launch.job.plan import planned_memory
from rankmixer.launch.model.build import Build
from rankmixer.launch.model.peak import peak_flops
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.ranks.versions import versions
from rankmixer.launch.report.run_page import PAGE, RunPage
from rankmixer.launch.report.tracking import tracker_of
from rankmixer.pipeline.base.collective import together
from rankmixer.pipeline.journal.journal import Journal


class RunRecord:
    """The journal and the page of one run. Collective to make; the rest is not.

    Args:
        config: the run.
        ranks: this process.
        built: the model.
        resumed: the checkpoint that the run goes on from, if any.
        step: where it goes on; what an earlier attempt said of later steps is dropped.
        total_steps: the last step, if it is known.

    Attributes:
        journal: None on ranks that say nothing.
    """

    def __init__(
        self, config: Config, ranks: Ranks, built: Build, *, resumed: str | None, step: int, total_steps: int | None
    ) -> None:
        self._built, self._world_size = built, ranks.world_size
        self._peak = config.train.peak_tflops * 1e12 if config.train.peak_tflops else peak_flops(ranks.device)
        hosts = ", ".join(dict.fromkeys(together("cannot name the hosts", socket.gethostname)))
        self._page = RunPage(config.run.directory)
        self.journal: Journal | None = None
        if not ranks.is_first:
            return
        self.journal = Journal(
            config.run.directory,
            total_steps=total_steps,
            resume_step=step,
            seconds=config.train.log_seconds,
            listener=tracker_of(config),
        )
        self.journal.event(
            "start",
            step,
            resumed_from=resumed,
            total_steps=total_steps,
            world_size=ranks.world_size,
            hosts=hosts,
            dense_parameters=built.dense_parameters,
            table_parameters=sum(table.rows * table.dim for table in config.feature_schema.tables.values()),
            flops_per_example=built.flops_per_example,
            training_flops_per_example=built.training_flops_per_example,
            peak_tflops=self._peak / 1e12,
            versions=versions(),
            plan={
                "shards": [asdict(shard) for shard in built.plan],
                "memory": planned_memory(config, ranks.world_size, built.plan, built.head_bytes),
            },
            config=dump_config(config),
        )

    def report(
        self,
        step: int,
        *,
        epoch: int,
        loss: float,
        examples_per_second: float,
        data_wait_share: float,
        grad_norm: float | None,
    ) -> None:
        """Record what the last steps did."""
        if self.journal is None:
            return
        flops = self._built.training_flops_per_example * examples_per_second / self._world_size
        lr_sparse, lr_dense = self._built.optimizer.learning_rates
        self.journal.step(
            step,
            epoch=epoch,
            loss=loss,
            examples_per_second=examples_per_second,
            data_wait_share=data_wait_share,
            mfu=flops / self._peak,
            lr_sparse=lr_sparse,
            lr_dense=lr_dense,
            **({} if grad_norm is None else {"grad_norm": grad_norm}),
            **self._built.routing_state(),
        )

    def show(self, *, has_ended: bool = False) -> None:
        """Write the run's page, which no disk that fails may turn into the end of the job."""
        if self.journal:
            with self.journal.survive(PAGE):
                self._page.refresh(has_ended=has_ended)

    def close(self) -> None:
        """Write the page for the last time, and close the log."""
        self.show(has_ended=True)
        if self.journal:
            self.journal.close()
