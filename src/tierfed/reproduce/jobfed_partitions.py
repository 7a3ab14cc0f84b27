"""JobFed's four partitions of MNIST and Fashion-MNIST: JobFed and the methods it is compared with."""

from typing import Any

from tierfed.reproduce.study import Case, Line, Study, accuracy, merged

SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
TYPES = {1: "balanced, IID", 2: "balanced, non-IID", 3: "imbalanced, non-IID", 4: "imbalanced, mixed"}
DECAY = {"model": {"weight_decay": 1e-4}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "jobfed": ("JobFed", {"algorithm": {"name": "jobfed", "stopping": "none"}}),
    "fedavg": ("FedAvg", {"algorithm": {"name": "fedavg"}}),
    "mtfl": ("MTFL", {"algorithm": {"name": "mtfl"}}),
    "fedprox": ("FedProx", {"algorithm": {"name": "fedprox", "mu": 1e-4}, **DECAY}),
    "scaffold": ("SCAFFOLD", {"algorithm": {"name": "scaffold"}, **DECAY}),
}
QUANTITIES = {
    "global": accuracy("global"),
    "personal, before training": accuracy("personal_pre"),
    "personal, after training": accuracy("personal_post"),
}

BASE: dict[str, Any] = {
    "run": {"rounds": 300},
    "data": {"batch": 20, "partition": {"kind": "shards", "devices": 500}, "split": {"val": 0.2}},
    "model": {"name": "epflu_mlp"},
    "topology": {"fogs": 5, "teams": "random", "participation": 0.3},
    "eval": {"every": 50, "post": True},
    "algorithm": {"lr": 0.1, "epochs": 1},
}


def _tables(data: str, kind: int, settings: dict[str, Any]) -> dict[str, Any]:
    return merged(BASE, {"data": {"source": data, "partition": {"type": kind}}}, settings)


STUDY = Study(
    name="jobfed-partitions",
    paper="Song, Kharel, Jee, Ko, WWW 2026 (JobFed)",
    compared="Accuracy of the global and the personal models on JobFed's four ways to deal out the data.",
    unit="% accuracy",
    cases=tuple(
        Case(key=f"{data}-type{kind}-{label}", tables=_tables(data, kind, settings))
        for data in SETS
        for kind in TYPES
        for label, (_, settings) in METHODS.items()
    ),
    lines=tuple(
        Line(
            data=f"{title}, type {kind} ({about})",
            method=method,
            quantity=quantity,
            algorithm=settings["algorithm"]["name"],
            case=f"{data}-type{kind}-{label}",
            read=read,
        )
        for data, title in SETS.items()
        for kind, about in TYPES.items()
        for label, (method, settings) in METHODS.items()
        for quantity, read in QUANTITIES.items()
    ),
    notes=(
        "No accuracies of JobFed have been published in what is public: README and appendix hold none, and the main "
        "text is not public. The table shows ours alone.",
        "From the public material: 500 devices, 30 % of them take part in a round, batches of 20, one local epoch, at "
        "most 300 rounds; weight decay 1e-4 for SCAFFOLD and FedProx, mu = 1e-4 for FedProx.",
        "Filled in here: learning rate 0.1 for all (the source says that it varies), five fogs with random first "
        "teams, EPFLU's perceptron with one batch norm, a fifth of the training data held out for JobFed's losses and "
        "left out by the others too. JobFed's stopping rules are off, so that all methods train alike long.",
        "JobFed itself is a reconstruction where its public material is silent; see its page.",
    ),
)
