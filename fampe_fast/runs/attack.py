"""Attack image files within bands: how often the model is fooled, where the energy lies, how attacks transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..files import (
    FIGURE,
    FOLDER,
    IMAGE,
    Output,
    check_outputs,
    mark_of,
    png_content,
    remove_leftovers,
    write_atomically,
)
from ..frequency.bands import equal_width_bands
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import save_figure
from ..plots.bands import bands_figure
from ..plots.queries import queries_figure
from ..robustness.analysis import disturbance
from ..robustness.band_limited import AdversarialImages, BandLimitedAttack
from ..robustness.simba import SimBA, SimBAConfig
from ..robustness.transfer import Answers, Attack, answers_of, attack_and_ask
from ..runtime.model import Model, chunk_size
from .attack_results import (
    ATTACK,
    CONFIDENCE,
    ROUNDING,
    Answer,
    AttackedImage,
    AttackSettings,
    AttackStudy,
    ImageRecord,
    SavedImage,
)
from .batches import Batch, Failure, Group, check_run_ids, check_same_task, groups_of, settle_all
from .records import RECORDS, Item, Records, digest_of_settings
from .settings import unique_names


def attack_outputs(paths: Sequence[Path], out: Path, bands: Sequence[str], save_images: bool) -> list[Output]:
    """List the files that ``attack_files`` writes."""
    images = [
        Output(out / "images" / band / f"{name}.png", IMAGE)
        for band in (bands if save_images else ())
        for name in unique_names(paths)
    ]
    return [
        Output(out, FOLDER),
        Output(out / "attack.json", ATTACK),
        Output(out / "attack.png", FIGURE),
        Output(out / "queries.png", FIGURE),
        Output(out / "attack.jsonl", RECORDS),
        *images,
    ]


def attack_files(
    classifier: Classifier,
    paths: Sequence[Path],
    out: Path,
    settings: AttackSettings | None = None,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    transfer_to: Classifier | None = None,
    save_images: bool = False,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> AttackStudy:
    """Attack every file in every band; write ``out/attack.json``, ``out/attack.png`` and, for SimBA, ``queries.png``.

    A batch is stored (``out/attack.jsonl``) once all its attacks are made, and is not attacked again for the same
    images, ids, targets, models and settings. After an interrupt, the results so far are summarised and the interrupt
    is raised again.

    Args:
        classifier: the attacked model; its transform reads the images.
        paths: image files.
        out: folder, made if missing.
        settings: bands, cut-off and configuration of the attacks.
        targets: the class of each file; None takes the classifier's own choice, about which it is right by definition.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
        transfer_to: another model of the same classes on the same device, for images of the same size, which is
            attacked too; each model also classifies the other's attacked images.
        save_images: write the images attacked on ``classifier`` as ``out/images/BAND/NAME.png``, rounded to the
            nearest 8-bit values in the ball of radius eps.
        batch_size: number of images read together.
        internal_batch_size: samples per model pass.
        on_images: called with the number of newly attacked images.
        on_failure: called for each image that is left out.

    Returns:
        The ``AttackStudy``.

    Raises:
        ValueError: models of different numbers of classes or channels, image ids that are not unique or out of range,
            more rings than the images have frequencies for, a band without frequencies, save_images with bounds other
            than (0, 1), or an output would replace an image or a foreign file.
        OSError: the results cannot be written.
    """
    settings = AttackSettings() if settings is None else settings
    models = _by_name(classifier, transfer_to)
    edges = equal_width_bands(*classifier.input_size, settings.rings, include_dc=True).edges[0].tolist()
    for band in settings.bands:
        settings.attack(classifier, band).check_size(*classifier.input_size)
    if save_images and settings.config.bounds != (0, 1):
        raise ValueError(f"images can only be saved for bounds of (0, 1), got {settings.config.bounds}")
    image_ids = check_run_ids(paths, image_ids)
    check_outputs(attack_outputs(paths, out, settings.bands, save_images), paths)
    for folder in (out, *(out / "images" / band for band in settings.bands)):
        remove_leftovers(folder)
    names = unique_names(paths)
    study = AttackStudy(settings, tuple(models), edges)
    everything = {
        "models": [identity_of(model) for model in (classifier, transfer_to) if model is not None],
        **asdict(settings),
        "config_type": type(settings.config).__name__,
        "edges": edges,
        "save_images": save_images,
    }

    def failed(failure: Failure) -> None:
        study.failures.append(failure)
        on_failure(failure)

    def key_of(item: Item) -> str:
        return digest_of_settings({"context": context, "image": item.digest, "id": item.image_id, "to": item.target})

    def done(item: Item) -> bool:
        found = records.get(context, item)
        if found is None or not save_images:
            return found is not None
        # Results of a saved image refer to its current file.
        files = [Path("images", band, f"{names[item.position]}.png") for band in settings.bands]
        marks = [mark_of(out / file) for file in files]
        return all(mark is not None and mark.key == key_of(item) for mark in marks)

    def work(batch: Batch) -> tuple[list[ImageRecord], dict[str, Tensor]]:
        files = [f"{names[position]}.png" for position in batch.positions] if save_images else None
        chosen = None if targets is None else [targets[position] for position in batch.positions]
        return _attacked(models, settings, batch, chosen, files, internal_batch_size)

    def keep(batch: Batch, items: list[Item], found: tuple[list[ImageRecord], dict[str, Tensor]]) -> None:
        made, pictures = found
        keys = {f"{names[item.position]}.png": key_of(item) for item in items}
        for file, levels in pictures.items():
            write_atomically(out / file, _png(levels, keys[Path(file).name]))
        records.add(context, items, [record.as_result() for record in made])

    with Records(out / "attack.jsonl", "attack") as records:
        context = records.context(everything)

        def settle(group: Group) -> None:
            group.settle(done, work, keep)
            on_images(len(group.items))

        def finish(attacked: list[Item], earlier: int) -> None:
            study.earlier = earlier
            study.records += [_record(records, context, item, names[item.position]) for item in attacked]
            if study.records:
                _save(study, out)

        settle_all(groups_of(classifier, paths, targets, batch_size, failed, image_ids), done, settle, finish)
    return study


def _record(records: Records, context: str, item: Item, name: str) -> ImageRecord:
    found = records.get(context, item)
    assert found is not None
    return ImageRecord.of_result(item, found, f"{name}.png")


def _by_name(classifier: Classifier, other: Classifier | None) -> dict[str, Model]:
    if other is None:
        return {classifier.name: classifier}
    check_same_task(classifier, other, "attacks transfer between")
    name = other.name if other.name != classifier.name else f"{other.name} (2)"
    return {classifier.name: classifier, name: other}


def _attacked(
    models: Mapping[str, Model],
    settings: AttackSettings,
    batch: Batch,
    targets: Sequence[int] | None,
    files: list[str] | None,
    internal_batch_size: int | None,
) -> tuple[list[ImageRecord], dict[str, Tensor]]:
    """Make the records of a batch, and the pictures to write, (C, H, W) uint8 by relative file name."""
    images = batch.images
    chunk = chunk_size(internal_batch_size, images.device)
    first, model = next(iter(models.items()))
    with torch.no_grad():
        classes = torch.tensor(targets, device=images.device) if targets is not None else model(images).argmax(1)
    before = {name: answers_of(asked, images, classes, chunk) for name, asked in models.items()}
    attacks: list[dict[str, dict[str, AttackedImage]]] = [{} for _ in batch.paths]
    pictures: dict[str, Tensor] = {}
    for band in settings.bands:
        for source, attacked in models.items():
            attack = settings.attack(attacked, band)
            found, after = attack_and_ask(_named(attack, batch.ids, chunk), models, images, classes, chunk)
            energy = disturbance(images, found.images, bands=settings.rings).perturbation
            queries = [found.model_passes] * len(batch.paths) if found.queries is None else found.queries.tolist()
            saved: list[SavedImage | None] = [None] * len(batch.paths)
            if files is not None and source == first:
                levels = nearest_levels(found.images, images, settings.radius)
                written = [f"images/{band}/{file}" for file in files]
                saved = [*_saved(written, levels, images, attack, answers_of(model, levels / 255, classes, chunk))]
                pictures |= dict(zip(written, levels.byte().cpu(), strict=True))
            for k in range(len(batch.paths)):
                attacks[k].setdefault(band, {})[source] = AttackedImage(
                    float(found.band_share[k]), energy[k].tolist(), queries[k], _answers(after, k), saved[k]
                )
    records = [
        ImageRecord(path, batch.ids[k], int(classes[k]), _answers(before, k), attacks[k])
        for k, path in enumerate(batch.paths)
    ]
    return records, pictures


def _named(attack: BandLimitedAttack | SimBA, ids: Sequence[int], chunk: int) -> Attack:
    def run(images: Tensor, classes: Tensor) -> AdversarialImages:
        return attack(images, classes, image_ids=ids, internal_batch_size=chunk)

    return run


def _answers(answers: Mapping[str, Answers], index: int) -> dict[str, Answer]:
    return {name: Answer(bool(a.right[index]), float(a.probability[index])) for name, a in answers.items()}


def nearest_levels(attacked: Tensor, images: Tensor, eps: float) -> Tensor:
    """Round attacked images to the nearest of 256 levels that lie within eps of the originals.

    Originals read from 8-bit files without resizing lie on levels themselves, so that with eps below 1/255 nothing of
    the attack remains. Where no level lies within eps, the change is larger than eps.

    Args:
        attacked: (B, C, H, W) in [0, 1].
        images: (B, C, H, W) in [0, 1], the originals.
        eps: radius of the ball in pixel units, above 0; infinite for no ball.

    Returns:
        (B, C, H, W) float32, whole numbers from 0 to 255.
    """
    # On the CPU, as some devices have no float64.
    origin = 255 * images.detach().cpu().double()
    lower = (origin - 255 * eps - ROUNDING).ceil()
    upper = (origin + 255 * eps + ROUNDING).floor()
    levels = (255 * attacked.detach().cpu().double()).round().clamp(lower, upper).clamp(0, 255)
    return levels.float().to(images.device)


def _saved(
    files: list[str], levels: Tensor, images: Tensor, attack: BandLimitedAttack | SimBA, answers: Answers
) -> list[SavedImage]:
    change = levels.cpu().double() / 255 - images.cpu().double()
    change[change.abs() < ROUNDING / 255] = 0  # otherwise a zero change has the energy of rounding errors
    largest, share = change.abs().flatten(1).amax(1), attack.band_share(change)
    return [
        SavedImage(
            file, float(largest[k]), float(share[k]), Answer(bool(answers.right[k]), float(answers.probability[k]))
        )
        for k, file in enumerate(files)
    ]


def _png(levels: Tensor, key: str) -> bytes:
    from PIL import Image

    return png_content(Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()), IMAGE, key)


def _save(study: AttackStudy, out: Path) -> None:
    write_atomically(out / "attack.json", study.as_json().encode())
    limited = any(band != "all" for band in study.settings.bands)
    figure = bands_figure(
        study.curves(),
        title=f"{study.models[0]}: energy of the attacks, {len(study.records)} images",
        ylabel="share of the perturbation's energy",
        confidence=CONFIDENCE,
        cutoff=study.settings.cutoff if limited else None,
    )
    save_figure(figure, out / "attack.png")
    if isinstance(study.settings.config, SimBAConfig):
        found = {band: study.queries_until_fooled(band) for band in study.settings.bands}
        if found[study.settings.bands[0]]:
            title = f"{study.models[0]}: fooled by queries only, {len(study.records)} images"
            save_figure(queries_figure(found, study.settings.config.max_queries, title=title), out / "queries.png")
