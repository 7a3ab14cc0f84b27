"""The table of algorithms: a row for every name; `tierfed.algorithms` makes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the registry."""

    target: str  # "package.module:Class"
    paper: str
    up: str  # what a device sends
    down: str  # what it gets
    models: str  # which of the evaluated models differ: global / team / personal
    preset: Mapping[str, Any] = field(default_factory=dict)  # the fields that make the method out of the class


def _row(target: str, paper: str, up: str, down: str, models: str, **preset: Any) -> Entry:
    return Entry(target=f"tierfed.algorithms.{target}", paper=paper, up=up, down=down, models=models, preset=preset)


REGISTRY: dict[str, Entry] = {
    "local": _row("keep_local:KeepLocal", "local-only training", "-", "-", "personal", private="all"),
    "fedavg": _row("fedavg:FedAvg", "McMahan et al. 2017, arXiv 1602.05629", "model", "model", "global, personal"),
    "hierfavg": _row(
        "fedavg:FedAvg", "Liu et al. 2020, arXiv 1905.06641", "model", "model", "global, team, personal", edge=True
    ),
    "fedprox": _row("fedavg:FedAvg", "Li et al. 2020, arXiv 1812.06127", "model", "model", "global, personal", mu=1e-4),
    "fedadam": _row("fedadam:FedAdam", "Reddi et al. 2021, arXiv 2003.00295", "model", "model", "global, personal"),
    "scaffold": _row(
        "scaffold:Scaffold",
        "Karimireddy et al. 2020, arXiv 1910.06378",
        "model, variate",
        "model, variate",
        "global, personal",
    ),
    "fedbn": _row("keep_local:KeepLocal", "Li et al. 2021, arXiv 2102.07623", "all but BN", "all but BN", "personal"),
    "mtfl": _row(
        "keep_local:KeepLocal",
        "Mills et al. 2021, arXiv 2007.09236",
        "model",
        "all but BN",
        "global, personal",
        average_private=True,
    ),
    "fedper": _row(
        "keep_local:KeepLocal", "Arivazhagan et al. 2019, arXiv 1912.00818", "body", "body", "personal", private="head"
    ),
    "lg-fedavg": _row(
        "keep_local:KeepLocal", "Liang et al. 2020, arXiv 2001.01523", "head", "head", "personal", private="body"
    ),
    "finetune": _row(
        "finetune:FineTune", "Wu, He, Chen 2020 (PerFit), arXiv 2002.10671", "model", "model", "global, personal"
    ),
    "ftl": _row("ftl:FTL", "Wu, He, Chen 2020 (PerFit), arXiv 2002.10671", "-", "-", "personal"),
    "reptile": _row(
        "reptile:Reptile", "Jiang, Konecny, Rush, Kannan 2019, arXiv 1909.12488", "model", "model", "global, personal"
    ),
    "pfedla": _row("pfedla:PFedLA", "Ma, Zhang, Guo, Xu, CVPR 2022", "model", "model", "personal"),
    "heurpfedla": _row(
        "pfedla:PFedLA", "Ma, Zhang, Guo, Xu, CVPR 2022", "model", "layers not retained", "personal", retain=1
    ),
    "fedfomo": _row(
        "fedfomo:FedFomo", "Zhang et al. 2021, arXiv 2012.08565", "model, M weights", "M models", "personal"
    ),
    "h-sgd": _row(
        "fedavg:FedAvg",
        "Wang et al. 2022, arXiv 2010.12998",
        "model",
        "model",
        "global, team, personal",
        edge=True,
        uniform=True,
    ),
    "permfl": _row(
        "permfl:PerMFL",
        "Banerjee, Dadras, Yurtsever, Bhuyan 2024, arXiv 2407.14251",
        "model",
        "model",
        "global, team, personal",
    ),
    "ditto": _row("ditto:Ditto", "Li et al. 2021, arXiv 2012.04221", "model", "model", "global, personal"),
    "apfl": _row("apfl:APFL", "Deng et al. 2020, arXiv 2003.13461", "model", "model", "global, personal"),
    "pfedme": _row("pfedme:PFedMe", "Dinh et al. 2020, arXiv 2006.08848", "model", "model", "global, personal"),
    "fedrep": _row("fedrep:FedRep", "Collins et al. 2021, arXiv 2102.07078", "body", "body", "personal"),
    "per-fedavg": _row(
        "perfedavg:PerFedAvg", "Fallah et al. 2020, arXiv 2002.07948", "model", "model", "global, personal"
    ),
    "l2gd": _row("l2gd:L2GD", "Hanzely, Richtarik 2020, arXiv 2002.05516", "change", "mean", "global, personal"),
    "al2gd": _row(
        "al2gd:AL2GD",
        "Lyu, Hanzely, Kolar 2022, arXiv 2204.13619",
        "model",
        "network mean, team mean",
        "global, team, personal",
    ),
    "fedmd": _row(
        "fedmd:FedMD",
        "Li, Wang 2019, arXiv 1910.03581",
        "R x C scores",
        "R x C mean scores",
        "personal",
        public_epochs=5,
    ),
    "perfit-fd": _row(
        "fedmd:FedMD",
        "Wu, He, Chen 2020 (PerFit), arXiv 2002.10671",
        "R x C scores",
        "R x C mean scores",
        "personal",
        subset=500,
        scores="probabilities",
        digest="kl",
    ),
    "fd": _row("fd:FD", "Jeong et al. 2018, arXiv 1811.11479", "C x C mean outputs", "C x C others' mean", "personal"),
    "fmtl": _row("fmtl:FMTL", "Smith et al. 2017, arXiv 1705.10467", "change", "mean", "global, personal"),
    "mocha": _row(
        "mocha:MOCHA", "Smith et al. 2017, arXiv 1705.10467", "v = X alpha", "sum of others' v", "global, personal"
    ),
    "fedamp": _row("fedamp:FedAMP", "Huang et al. 2021, arXiv 2007.03797", "model", "model", "personal"),
    "heurfedamp": _row(
        "fedamp:FedAMP", "Huang et al. 2021, arXiv 2007.03797", "model", "model", "personal", attention="cosine"
    ),
    "ifca": _row("ifca:IFCA", "Ghosh et al. 2020, arXiv 2006.04088", "model, choice", "k models", "personal"),
    "cfl": _row("cfl:CFL", "Sattler et al. 2021, arXiv 1910.01991", "model", "model", "personal"),
    "pfedhn": _row("pfedhn:PFedHN", "Shamsian et al. 2021, arXiv 2103.04628", "model", "model", "personal"),
    "pfedhn-pc": _row("pfedhn:PFedHN", "Shamsian et al. 2021, arXiv 2103.04628", "body", "body", "personal", depth=1),
    "demlearn": _row(
        "demlearn:DemLearn", "Nguyen et al. 2022, arXiv 2007.03278", "model", "model", "global, team, personal", mu=0.0
    ),
    "demlearn-p": _row(
        "demlearn:DemLearn", "Nguyen et al. 2022, arXiv 2007.03278", "model", "model", "global, team, personal"
    ),
    "epflu": _row("epflu:EPFLU", "EPFLU, ICWE 2024", "sum of all but BN", "all but BN", "personal"),
    "ppt": _row("ppt:PPT", "Chen et al. 2022", "masked sum", "model", "global, team, personal"),
    "jobfed": _row(
        "jobfed:JobFed", "Song, Kharel, Jee, Ko, WWW 2026", "model, 2 losses", "all but BN", "global, team, personal"
    ),
}
