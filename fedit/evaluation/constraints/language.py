"""Which language a text is in, by langdetect where it is installed."""

import importlib.util
from functools import cache
from typing import Any

INSTALL = "pip install 'fedit[ifeval]'"


def available() -> bool:
    """Return whether languages can be told on this machine."""
    return importlib.util.find_spec("langdetect") is not None


def languages() -> list[str]:
    """Return the codes of the languages that can be told, sorted; Chinese is zh-cn and zh-tw."""
    return sorted(_factory().get_lang_list())


def language_of(text: str) -> str | None:
    """Return the code of the likeliest language; None where ``text`` has nothing to tell it by."""
    from langdetect.lang_detect_exception import LangDetectException  # type: ignore[import-untyped]

    detector = _factory().create()
    try:
        detector.append(text)
        code = str(detector.detect())
    except LangDetectException:
        return None
    return None if code == "unknown" else code


@cache
def _factory() -> Any:  # noqa: ANN401  (the library has no types)
    from langdetect import PROFILES_DIRECTORY, DetectorFactory  # type: ignore[import-untyped]

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    # The library draws random numbers; a factory of our own with a fixed seed gives one text one language.
    factory.seed = 0
    return factory
