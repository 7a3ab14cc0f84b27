"""Colors that are readable on white and on near-black, and apart for the common color blindnesses."""

PALETTE = (
    "#3b82f6",
    "#e5537a",
    "#12a37f",
    "#d99a00",
    "#8b6cf6",
    "#e8702a",
    "#0ea5c6",
    "#b5549c",
    "#7f9a2e",
    "#8d8279",
)
