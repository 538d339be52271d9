"""DECIDE-AI: early clinical evaluation of AI, 17 items in 28 parts and 10 general ones."""

from __future__ import annotations

from pneumoscope.report.checklists.item import (
    AUTHORS,
    CLINICIANS,
    OWNERS,
    STATISTICIANS,
    Guideline,
    Item,
)

DECIDE = Guideline(
    "DECIDE-AI",
    "decide",
    "Vasey et al. 2022, doi:10.1136/bmj-2022-070904",
    (
        Item("1", "Title: early clinical evaluation, AI, the problem", "", AUTHORS),
        Item("I", "Abstract in parts", "", AUTHORS),
        Item("2a", "Condition, present practice, intended patients", "", CLINICIANS),
        Item("2b", "Intended users, place in the care pathway, hoped-for effect", "", CLINICIANS),
        Item("II", "Objectives", "", AUTHORS),
        Item("III", "Protocol, registration, ethical approval", "", AUTHORS),
        Item("3a", "How patients were recruited, criteria, planned number", "data", OWNERS),
        Item("3b", "How users were recruited, criteria, planned number", "", CLINICIANS),
        Item("3c", "How users were made familiar with the system", "", CLINICIANS),
        Item(
            "4a", "The system, its version, what it was trained and tested on", "software", AUTHORS
        ),
        Item(
            "4b", "Inputs, how they were got and prepared; poor and missing data", "missing", OWNERS
        ),
        Item("4c", "Outputs, and how users saw them", "output", CLINICIANS),
        Item("5a", "Settings", "", OWNERS),
        Item("5b", "Workflow, when the system was used, who decided", "", CLINICIANS),
        Item("6a", "How errors and malfunctions were defined and found", "refusals", CLINICIANS),
        Item("6b", "How risks to patients were found and reduced", "", CLINICIANS),
        Item("7", "Human factors: methods", "", CLINICIANS),
        Item("8", "Ethical aims such as fairness, and how they were met", "subgroups", AUTHORS),
        Item("IV", "Outcomes, primary and secondary", "measures", AUTHORS),
        Item("V", "Analysis, with how uncertainty was told", "uncertainty", STATISTICIANS),
        Item("VI", "How patients were involved", "", AUTHORS),
        Item("9a", "Characteristics of patients and what was missing", "characteristics", OWNERS),
        Item("9b", "Characteristics of users", "", CLINICIANS),
        Item("10a", "How often the system was used, and as intended", "exposure", CLINICIANS),
        Item("10b", "Changes to the workflow", "", CLINICIANS),
        Item("VII", "Main results", "performance"),
        Item("VIII", "Results by subgroup", "subgroups"),
        Item("11", "Changes of system or platform during the study", "modifications", OWNERS),
        Item("12", "Agreement of users and system; why they differed", "agreement", CLINICIANS),
        Item("13a", "Errors and malfunctions, and what became of them", "errors", CLINICIANS),
        Item("13b", "Risks and harm seen", "", CLINICIANS),
        Item("14a", "Usability", "", CLINICIANS),
        Item("14b", "Learning curves of users", "", CLINICIANS),
        Item("15", "Whether results support the intended use", "", AUTHORS),
        Item("16", "What they say of safety", "", CLINICIANS),
        Item("IX", "Strengths and limits", "limits", AUTHORS),
        Item("17", "Whether data and code can be had", "records", AUTHORS),
        Item("X", "Interests", "", AUTHORS),
    ),
)
