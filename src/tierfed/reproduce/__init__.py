"""Published tables run again: `STUDIES` by name, and the command that runs one."""

from tierfed.reproduce import (
    comparison,
    compression,
    dp_mnist,
    jobfed_partitions,
    perfit,
    permfl_participation,
    permfl_table1,
    permfl_teams,
    pfedla_fig6,
    pfedla_table3,
    pfedla_tables,
    robustness,
)
from tierfed.reproduce.page import as_dict, command, left_out, result_table, scale_text, write_page
from tierfed.reproduce.runner import Options, Outcome, reproduce
from tierfed.reproduce.study import Case, Figure, Line, Study

__all__ = [
    "STUDIES",
    "Case",
    "Figure",
    "Line",
    "Options",
    "Outcome",
    "Study",
    "as_dict",
    "command",
    "left_out",
    "reproduce",
    "result_table",
    "scale_text",
    "write_page",
]

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        permfl_table1.STUDY,
        permfl_teams.STUDY,
        permfl_participation.STUDY,
        pfedla_tables.TABLE1,
        pfedla_tables.TABLE2,
        pfedla_table3.STUDY,
        pfedla_fig6.STUDY,
        jobfed_partitions.STUDY,
        perfit.STUDY,
        comparison.STUDY,
        compression.STUDY,
        robustness.STUDY,
        dp_mnist.STUDY,
    )
}
