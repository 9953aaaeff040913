"""An audit as its file tells it: ``audit.json`` becomes what a report shows."""

from collections.abc import Mapping

from fedit.report.numbers import Estimate
from fedit.report.record import bounds, mapping, number
from fedit.report.sections.leakage import Attack, Audit, Audited, Exposure


def audit_of(content: Mapping[str, object]) -> Audit:
    """Return what a report shows of ``audit.json``; nothing was looked at where that is empty."""
    models = [_audited(mapping(model)) for model in _listed(content.get("models"))]
    warnings = tuple(str(text) for text in _listed(content.get("warnings")))
    references = number(mapping(content.get("options")).get("references")) or 1
    chance = number(content.get("chance_exposure")) or 0.0
    claim = number(mapping(content.get("claim")).get("epsilon"))
    return Audit(models, round(references), chance, claim, warnings)


def _audited(model: Mapping[str, object]) -> Audited:
    membership = mapping(model.get("membership"))
    found = [_attack(name, mapping(one)) for name, one in mapping(membership.get("scores")).items()]
    planted = _listed(mapping(model.get("canaries")).get("by_repetitions"))
    return Audited(
        str(model.get("kind")),
        _whole(model.get("round")),
        str(model.get("client") or ""),
        _whole(membership.get("members")),
        _whole(membership.get("others")),
        [attack for attack in found if attack is not None],
        str(membership.get("left_out") or ""),
        [exposure for one in planted if (exposure := _exposure(mapping(one))) is not None],
    )


def _attack(name: str, found: Mapping[str, object]) -> Attack | None:
    auc, accuracy = _estimate(found.get("auc")), _estimate(found.get("balanced_accuracy"))
    if auc is None or accuracy is None:
        return None
    caught = mapping(found.get("tpr_at_fpr"))
    few, fewer = _estimate(caught.get("0.01")), _estimate(caught.get("0.001"))
    return Attack(name, auc, accuracy, few, fewer, number(found.get("epsilon_lower_bound")))


def _exposure(found: Mapping[str, object]) -> Exposure | None:
    mean = number(found.get("exposure_mean"))
    if mean is None:
        return None
    return Exposure(
        _whole(found.get("repetitions")),
        _whole(found.get("canaries")),
        number(found.get("times_trained_on")),
        Estimate(mean, *bounds(found.get("exposure_interval"))),
        number(found.get("exposure_highest")),
        _whole(found.get("extracted")),
    )


def _estimate(found: object) -> Estimate | None:
    values = mapping(found)
    value = number(values.get("value"))
    return None if value is None else Estimate(value, number(values.get("low")), number(values.get("high")))


def _whole(value: object) -> int:
    return round(number(value) or 0)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
