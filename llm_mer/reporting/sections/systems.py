"""Several systems side by side: scores, run options, and spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.metrics import headline_metric
from llm_mer.evaluation.over_seeds import over_seeds
from llm_mer.evaluation.rows import EVALUATION
from llm_mer.evaluation.spread import Spread
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.reporting.blocks import Cell, Section, Table
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.wording import format_number, language_columns, language_label, metric_label, option_text, score_cell


def system_section(systems: Sequence[tuple[str, LoadedEvaluation]]) -> Section:
    """Several evaluations side by side."""
    section = Section("systems", "Systems side by side")
    tasks = {task.name: task for _, loaded in systems for task in loaded.tasks}
    languages = sorted({language for _, loaded in systems for language in loaded.languages})
    languages += [EVERYTHING] if len(languages) > 1 else []
    several = len(precisions_of(systems)) > 1
    for task in tasks.values():
        metric = headline_metric(task)
        lines = []
        for name, loaded in systems:
            checkpoint = loaded.evaluation.checkpoint
            reads = " + ".join(checkpoint.get("modalities") or [])
            trained = (checkpoint.get("parameters") or {}).get("trainable")
            line = [
                Cell(name, (f"{checkpoint.get('adapter', '?')}: {reads}", *([precision_of(loaded)] if several else []))),
                Cell("–" if trained is None else f"{trained:,}"),
            ]
            for language in languages:
                row = loaded.evaluation.find(AS_IS, task.name, language)
                beside: tuple[str, ...] = ()
                if row is not None:
                    baseline = f"n={row.n}, baseline {format_number(row.baseline.get(metric, float('nan')))}"
                    beside = (baseline, f"unparseable {format_number(row.unparseable_rate)}")
                line.append(score_cell(row, metric, *beside))
            lines.append(line)
        caption = (
            f"Task {task.name}, {AS_IS}: {metric_label(metric)} with its 95 % interval, each system on its own evaluation."
        )
        section.blocks.append(Table(["system", "trainable", *(language_label(s) for s in languages)], lines, caption))
    return section


def precision_of(loaded: LoadedEvaluation) -> str:
    """The precision in which the answers of an evaluation were computed, as text."""
    checkpoint = loaded.evaluation.checkpoint
    if checkpoint.get("backbone") is None:
        return "no language model"
    return str(checkpoint.get("precision") or "precision not recorded")


def precisions_of(systems: Sequence[tuple[str, LoadedEvaluation]]) -> list[str]:
    """The distinct precisions of the systems, without those that record none or have no language model."""
    found = [loaded.evaluation.checkpoint.get("precision") for _, loaded in systems]
    return [str(precision) for precision in dict.fromkeys(found) if precision is not None]


def manifest_of(loaded: LoadedEvaluation) -> RunManifest | None:
    """The training manifest recorded in the evaluation; None in evaluations of earlier versions."""
    entry = loaded.evaluation.checkpoint.get("run")
    return None if entry is None else RunManifest.from_dict(entry, f"{loaded.folder}: the run in {EVALUATION}")


def run_section(systems: Sequence[tuple[str, LoadedEvaluation]]) -> Section:
    """How each system was trained: code, versions, machine, data; all options in a folded table."""
    section = Section("runs", "How it was trained")
    manifests = {name: found for name, loaded in systems if (found := manifest_of(loaded)) is not None}
    if not manifests:
        return section
    facts = {name: summarise_run(manifest) for name, manifest in manifests.items()}
    lines = [[Cell(fact), *(Cell(own[fact]) for own in facts.values())] for fact in next(iter(facts.values()))]
    caption = "From the manifest that the training wrote beside its checkpoint; `llm-mer reproduce` repeats it."
    section.blocks.append(Table(["", *manifests], lines, caption, heads=1 + len(manifests)))
    options: dict[str, None] = {}
    flat = {}
    for name, manifest in manifests.items():
        flat[name] = {f"{group}: {k}": v for group, values in manifest.options.items() for k, v in values.items()}
        options.update(dict.fromkeys(flat[name]))
    lines = [[Cell(option), *(Cell(option_text(own.get(option))) for own in flat.values())] for option in options]
    caption = "Every option as given by file, command line and defaults; – where nothing was given."
    section.blocks.append(
        Table(["option", *manifests], lines, caption, heads=1 + len(manifests), folded=f"Every option ({len(lines)})")
    )
    return section


def summarise_run(manifest: RunManifest) -> dict[str, str]:
    """Summarise a manifest in a few lines."""
    machine, git = manifest.hardware, manifest.git
    changed = (
        ""
        if git is None
        else ", nothing changed"
        if git.changes_sha256 is None
        else (f", with changes {git.changes_sha256[:12]}")
    )
    backbone = manifest.backbone or {}
    return {
        "command": " ".join(manifest.command),
        "seed": str(manifest.seed),
        "from, to": f"{manifest.started}, {manifest.finished or 'not finished'}; {manifest.steps} steps",
        "code": "no checkout" if git is None else f"commit {git.commit[:12]}{changed}",
        "data": f"{manifest.data.get('source')} ({str(manifest.data.get('fingerprint'))[:12]})",
        "backbone": f"{backbone.get('name')} ({str(backbone.get('fingerprint'))[:12]})" if backbone else "none",
        "weights": str(manifest.weights_sha256)[:12],
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; {'; '.join(machine.gpus) or 'no GPU'}",
        "computed on": f"{machine.device}, mixed precision {machine.mixed_precision}, processes {machine.processes}, "
        f"threads {machine.threads} each",
        "Python": f"{manifest.python}, {manifest.platform}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }


def seed_groups(systems: Sequence[tuple[str, LoadedEvaluation]]) -> list[dict[int, LoadedEvaluation]]:
    """Groups of systems that differ only by their training seed; groups of one are left out."""
    groups: dict[str, dict[int, LoadedEvaluation]] = {}
    for _, loaded in systems:
        manifest = manifest_of(loaded)
        if manifest is None:
            continue
        setup = manifest.setup().settings()
        seed = setup.pop("seed")
        if setup.get("data_seed") == seed:
            del setup["data_seed"]
        own = loaded.evaluation
        rows = [(r.condition, r.task, r.language, r.subset, r.n) for r in own.rows]
        key = json.dumps([setup, own.data, own.split, own.checkpoint.get("precision"), rows], sort_keys=True)
        groups.setdefault(key, {}).setdefault(manifest.seed, loaded)
    return [group for group in groups.values() if len(group) > 1]


def seed_section(systems: Sequence[tuple[str, LoadedEvaluation]]) -> Section:
    """Mean ± std of every metric over systems that differ only by their seed."""
    section = Section("seeds", "Over seeds")
    for group in seed_groups(systems):
        first = next(iter(group.values()))
        rows = over_seeds([loaded.evaluation for loaded in group.values()])
        for task in first.tasks:
            languages = language_columns(first)
            own = {r.language: r for r in rows if (r.condition, r.task, r.subset) == (AS_IS, task.name, EVERYTHING)}
            own = {language: own[language] for language in languages if language in own}
            names = dict.fromkeys(name for row in own.values() for name in row.metrics if name != "n_scored")
            lines = [[Cell("utterances n"), *(Cell(str(row.n)) for row in own.values())]]
            for name in names:
                line = [Cell(metric_label(name))]
                for row in own.values():
                    spread = row.metrics.get(name, Spread(None, None, []))
                    values = zip(group, spread.values, strict=False)
                    below = [f"{seed}: {'–' if value is None else format_number(value)}" for seed, value in values]
                    below += [f"baseline {format_number(row.baseline[name])}"] if name in row.baseline else []
                    line.append(Cell(str(spread), tuple(below)))
                lines.append(line)
            adapter = first.evaluation.checkpoint.get("adapter", "?")
            caption = (
                f"{adapter}, task {task.name}, split {first.evaluation.split}, {AS_IS}: mean ± sample standard deviation "
                f"over {len(group)} training runs that differ only by their seed ({', '.join(map(str, group))}), each below."
            )
            section.blocks.append(Table(["metric", *(language_label(s) for s in own)], lines, caption))
    return section
