"""Flower with its own FedAvg over the Ray simulation: one worker process per core, one thread each."""

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy

from sides.job import Job, cores, pool, train_rows
from sides.network import laid_out, network
from sides.turns import StoppedError, Turns

FOREVER = 1_000_000


class Taking(FedAvg):
    """FedAvg that waits for a command before every round."""

    def __init__(self, turns: Turns, cohort: int, devices: int) -> None:
        super().__init__(
            fraction_train=cohort / devices,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=devices,
        )
        self.turns = turns

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round > 1:
            self.turns.turn()
        elif not self.turns.wait():
            raise StoppedError
        return super().configure_train(server_round, arrays, config, grid)


def serve(job: Job, turns: Turns) -> None:
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        first = ArrayRecord(network(job).state_dict())
        Taking(turns, job.cohort, job.devices).start(grid=grid, initial_arrays=first, num_rounds=FOREVER)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return trained(job, message, int(context.node_config["partition-id"]))

    try:
        run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=job.devices,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"num_cpus": cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"},
            },
        )
    except StoppedError:
        return


def trained(job: Job, message: Message, device: int) -> Message:
    """What a device answers: its trained model and its number of samples."""
    torch.set_num_threads(1)
    module = network(job).train()
    module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    rows = train_rows(job)[device]
    x, y = pool(job, mapped=True)
    own_x, own_y = laid_out(torch.from_numpy(x[rows]), job.layout), torch.from_numpy(y[rows])
    optimizer = torch.optim.SGD(module.parameters(), job.lr)
    for batch in torch.randperm(job.samples).split(job.batch):
        optimizer.zero_grad()
        cross_entropy(module(own_x[batch]), own_y[batch]).backward()
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(module.state_dict()),
            "metrics": MetricRecord({"num-examples": job.samples}),
        }
    )
    return Message(content=content, reply_to=message)
