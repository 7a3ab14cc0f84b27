"""pfl-research: FederatedAveraging over its SimulatedBackend, one process."""

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sides.job import Job, pool, train_rows
from sides.network import laid_out, network
from sides.turns import Turns

FOREVER = 1_000_000


class Net(nn.Module):
    """A network as pfl wants it: with its own loss."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        self.train(not eval)
        return cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, float]:
        return {}


class Taking(TrainingProcessCallback):
    """Waits for a command before every round."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.turns.wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.turns.done()
        return not self.turns.wait(), Metrics()


def serve(job: Job, turns: Turns) -> None:
    torch.set_num_threads(job.threads)
    np.random.seed(job.seed)  # pfl draws from the global state
    x, y = (torch.from_numpy(a) for a in pool(job))
    x, rows = laid_out(x, job.layout), train_rows(job)

    def dataset(device: int) -> Dataset:
        order = torch.from_numpy(np.random.permutation(rows[device]))
        return Dataset(raw_data=[x[order], y[order]], user_id=str(device))

    net = Net(network(job))
    if job.layout == "nhwc":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = FederatedDataset(dataset, get_user_sampler("random", list(range(job.devices))))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=FOREVER,
            evaluation_frequency=FOREVER,
            train_cohort_size=job.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), 1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job.lr, local_batch_size=job.batch
        ),
        callbacks=[Taking(turns)],
        send_metrics_to_platform=False,
    )
