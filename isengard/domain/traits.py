"""Words of captions that say who somebody is: what the trigger word is to learn must not be explained by other words."""

import re

from isengard.domain.captions import has_trigger

#: Stands for a trait that was taken out.
_GONE = "\0"
_SHADES = r"(?:very|light|dark|pale|deep|bright|medium|long|short|shoulder-length|thick|thin|fine)"
_HAIR = (
    "black|brown|blonde?|golden|red|auburn|ginger|gr[ae]y|silver|white|platinum|chestnut|strawberry|copper|pink|blue|green|"
    "purple|dark|light|fair|curly|wavy|straight|frizzy|kinky|coily|afro|thick|thin|long|short|medium-length|"
    "shoulder-length|chin-length|cropped|shaved|messy|receding|thinning"
)
_EYES = "blue|green|brown|hazel|gr[ae]y|amber|dark|light|black|almond-shaped|almond|deep-set|hooded|large|big|small|round|wide-set"
_SKIN = "fair|pale|light|dark|brown|black|tanned|tan|olive|ebony|porcelain|freckled|white|medium|wrinkled"
_FEATURES = (
    "high|sharp|strong|square|defined|chiseled|chiselled|prominent|pronounced|round|oval|heart-shaped|narrow|wide|broad|"
    "large|big|small|button|aquiline|hooked|crooked|straight|long|short|full|thin|plump|thick|bushy|arched|pointed|"
    "double|cleft|soft|angular|rosy"
)
_PARTS = "cheekbones?|cheeks?|jaw|jawline|chin|nose|lips|eyebrows|brows|eyelashes|lashes|forehead|face(?! mask)|complexion|features"
#: Before a noun that stays: "a blonde woman".
_ADJECTIVES = (
    "blonde?|redheaded|bald|balding|bearded|mustachioed|clean-shaven|unshaven|freckled|middle-aged|elderly|"
    r"(?:caucasian|asian|african-american|hispanic|latin[ao])(?= (?:wo)?man\b| person| girl| boy| male| female)|(?:dark|light|fair|pale|olive)-skinned|"
    "(?:blue|green|brown|hazel|gr[ae]y|dark|bright)-eyed|"
    r"(?:black|brown|dark|fair|red|gr[ae]y|white|long|short|curly|ginger)-haired|\w+[- ]year[- ]old"
)
_NOUNS = "brunette|redhead|freckles|dimples|wrinkles|mou?stache|beard|goatee|stubble|sideburns|birthmark|cheekbones|jawline"


def _described(noun: str, *, by: str) -> str:
    """A noun with adjectives of which one says who it is: 'long dark hair', 'blue eyes'."""
    one = rf"(?:{by})"
    return rf"(?:{_SHADES},? )*{one}(?:(?:,| and|,? ) ?(?:{one}|{_SHADES}))* (?:{noun})"


_NOUN = (
    rf"{_described('hair', by=_HAIR)}|{_described('eyes', by=_EYES)}|{_described('skin', by=_SKIN)}"
    rf"|{_described(_PARTS, by=_FEATURES)}|(?:(?:{_SHADES}|{_FEATURES}|{_HAIR}),? )*(?:{_NOUNS})"
)
_TRAIT = re.compile(rf"(?<![\w\[-])(?:(?P<noun>{_NOUN})|{_ADJECTIVES})(?![\w\]-])", re.IGNORECASE)
_OWNER = r"(?:an?|the|her|his|their|some)"
_HAVING = r"with|has|having"
#: What introduces a trait and means nothing without it.
_LEAD = rf"(?:\s*(?:,|\b(?:and|{_HAVING}|{_OWNER})\b))*"


def traits(caption: str) -> tuple[str, ...]:
    """What a caption says of somebody's looks that stays the same in each photo: hair, eyes, skin, face, age."""
    return tuple(match.group(0) for match in _TRAIT.finditer(caption))


def without_traits(caption: str) -> str:
    """The caption without them, and without the words that only introduced them."""
    gone = _TRAIT.sub(lambda match: _GONE if match["noun"] else "", caption)
    gone = re.sub(rf"{_GONE}(?:(?:,? and|,)(?: {_OWNER})? {_GONE})+", _GONE, gone)
    gone = re.sub(rf"\b({_HAVING})(?: {_OWNER})? {_GONE},? and\b", r"\1", gone)
    return _tidy(re.sub(rf"{_LEAD}\s*{_GONE}", "", gone))


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger in it: before the class word when it has one, else at its beginning."""
    if has_trigger(caption, trigger):
        return caption
    if "[class]" in caption:
        return caption.replace("[class]", "[trigger] [class]", 1)
    return f"[trigger] [class], {caption}"


def _tidy(text: str) -> str:
    for pattern, by in ((r"\s+", " "), (r"\s+([,.;])", r"\1"), (r",(?:\s*,)+", ","), (r",\s*\.", ".")):
        text = re.sub(pattern, by, text)
    return re.sub(r"\ban (?=[bcdfghjklmnpqrstvwxyz])", "a ", text).strip(" ,;")
