"""PerMFL's table on team formation: two teams with disjoint (worst) or overlapping (average) labels."""

from tierfed.reproduce.permfl_table1 import BASE, PERMFL, READ, SETS
from tierfed.reproduce.study import TRANSCRIBED, Case, Line, Study, merged

# formation -> data set -> (PM, GM)
PUBLISHED = {
    "worst": {"mnist": (96.86, 80.48), "fashion_mnist": (97.14, 76.18)},
    "average": {"mnist": (97.01, 80.86), "fashion_mnist": (96.72, 74.45)},
}

STUDY = Study(
    name="permfl-teams",
    paper="Banerjee, Dadras, Yurtsever, Bhuyan 2024 (PerMFL), arXiv 2407.14251, team formation",
    compared="Accuracy of PerMFL's global (GM) and personal models (PM) by how two teams are formed, convex model.",
    unit="% accuracy",
    cases=tuple(
        Case(
            key=f"{data}-{teams}",
            label=teams,
            tables=merged(
                BASE, {"data": {"source": data}, "topology": {"fogs": 2, "teams": teams}, "algorithm": PERMFL}
            ),
        )
        for data in SETS
        for teams in PUBLISHED
    ),
    lines=tuple(
        Line(
            data=title,
            method=f"PerMFL, {teams} case",
            quantity=quantity,
            algorithm="permfl",
            case=f"{data}-{teams}",
            read=READ[quantity],
            paper=PUBLISHED[teams][data][("PM", "GM").index(quantity)],
            source=f"team formation, MCLR; {TRANSCRIBED}",
        )
        for data, title in SETS.items()
        for teams in PUBLISHED
        for quantity in ("GM", "PM")
    ),
    notes=(
        "Worst: the first team has the labels 0-4, the second 5-9. Average: 0-6, and 5-9 with 0 and 1. A device whose "
        "two labels lie in both ranges, or in none as a whole, joins the team that holds most of its samples: some "
        "labels are therefore found in both teams in the worst case too.",
        "The number of devices and the rounds of this table are not in the transcription: here they are those of "
        "Table 1 (forty devices; T = 400, K = 10, L = 20), with eta = 0.03 from the released code. The published "
        "numbers for the networks (CNN) and for EMNIST are left out.",
    ),
)
