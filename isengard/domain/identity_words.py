"""Words that say who somebody is rather than what a picture shows: they have no place in a caption.

What a caption names, a LoRA learns to be changeable; what it leaves out, the trigger word comes to stand for. The
words are English, as captions are. Models describe a person in few ways, and these are meant to be found; a sentence
of a novel may pass, and a part of a sentence too many may go.
"""

import re
from collections.abc import Iterator

from isengard.domain.captions import CLASS, TRIGGER

_PEOPLE = (
    "woman|man|girl|boy|lady|gentleman|guy|person|individual|female|male|child|kid|teenager|adult|blonde|brunette|"
    "redhead"
)
#: Adjectives of people, where such a noun follows.
_ABOUT_PEOPLE = (
    r"young(?:er)?|old(?:er)?|elderly|aged|middle-aged|adult|teenaged?|mature|[\w-]{1,20}[- ]year[- ]old|beautiful|"
    r"attractive|handsome|pretty|gorgeous|stunning|cute|slim|slender|thin|skinny|petite|curvy|chubby|plump|stocky|"
    r"heavyset|muscular|athletic|tall|short|white|black|brown|asian|caucasian|african|african-american|american|"
    r"european|hispanic|latin[aox]|indian|chinese|japanese|korean|arab(?:ic)?|middle[- ]eastern|blonde?|brunette|"
    r"ginger|bald|balding|bearded|freckled|fair|pale|tanned|redheaded|[\w-]{1,20}-(?:haired|skinned|eyed|faced|bearded)"
)
#: Adjectives of hair, eyes, skin and the like, where such a noun follows or is said to be so.
_LOOKS = (
    r"(?:light|dark|deep|bright|medium|dirty|sandy|reddish|golden)[- ](?:blue|green|brown|gr[ae]y|red|blonde?)|"
    r"blue|green|brown|hazel|gr[ae]y|amber|black|white|red|blonde?|auburn|ginger|golden|silver|dark|light|fair|pale|"
    r"tan|tanned|olive|long|short|(?:shoulder|chin|waist|medium|neck)-length|curly|wavy|straight|frizzy|coily|thick|"
    r"thin|full|fine|bushy|arched|almond|almond-shaped|round|rounded|oval|square|heart-shaped|sharp|strong|high|"
    r"prominent|pointed|broad|narrow|small|large|big|smooth|clear|receding|salt-and-pepper|striking|piercing|"
    r"expressive|distinctive|trimmed|well-groomed|rosy|floppy|pointy|fluffy|spotted"
)
_FEATURES = (
    r"hair|haircut|eyes?|eyebrows?|brows?|eyelashes|lashes|nose|lips|cheeks?|chin|jaw|forehead|face|ears?|fur|muzzle|"
    r"snout|tail|build|physique"
)
#: Nothing but identity, whatever stands before them.
_ALWAYS = (
    r"beard|mou?stache|goatee|stubble|sideburns|freckles|dimples|wrinkles|cheekbones|jawline|birthmark|moles?|"
    r"complexion|skin(?: tone| colou?r)?|eye colou?r|hair colou?r|hairline|facial (?:features|hair|structure)|"
    r"ethnicity|tattoos?|scars?"
)
_BETWEEN = r"(?:, and |, | and | )"
_CHAIN = rf"(?:{_LOOKS})(?:{_BETWEEN}(?:{_LOOKS})){{0,4}}"
_TRAIT = re.compile(
    rf"\b(?:{_CHAIN} (?:{_FEATURES})|(?:{_FEATURES}) (?:is|are|looks?|appears?)(?: very| naturally)? {_CHAIN}|"
    rf"(?:{_ALWAYS}))\b(?! (?:open|closed|shut))",
    re.IGNORECASE,
)
#: Goes without the part of the sentence around it.
_ASIDE = re.compile(
    r",? (?:who )?(?:(?:is|appears to be|seems to be|looks to be) )?(?:probably |likely )?in (?:his|her|their) "
    r"(?:early |mid |late |early-|mid-|late-)?(?:teens|twenties|thirties|forties|fifties|sixties|seventies|[2-7]0s)\b|"
    r" of [\w-]+ (?:descent|ethnicity|origin|heritage)\b|"
    r" in (?:the|this) (?:image|photo|photograph|picture)\b",
    re.IGNORECASE,
)
#: Where a part of a sentence begins that can be left out.
_PART = re.compile(
    r"(?=[,;.!?](?: |$)| (?:and|with|while|but|who|wears|dressed|stands|sits|seated|poses|looks at|smiles|holds|walks|"
    r"runs|leans|lies|against|in front of|on an?|on the|at an?|at the|under|outdoors|indoors|"
    r"in (?:an?|the)(?! (?:bun|ponytail|braid|knot|wind))|"
    r"(?!(?:fall|flow|blow|fram|hang|cascad|reach|go)ing)[a-z]{2,}ing)\b)",
    re.IGNORECASE,
)
_PICTURE = "(?:image|photo|photograph|picture|portrait|shot|scene)"
_OPENING = re.compile(
    rf"(?:(?:in )?(?:this|the) {_PICTURE}(?: (?:shows|depicts|features|captures|portrays|is of|is))?,? )?(?:there is )?"
    rf"(?:(?:an? |the )?(?P<framing>[\w -]{{0,40}}?(?:close-?up|selfie|{_PICTURE})) (?:of|showing|featuring) )?",
    re.IGNORECASE,
)
_FRAMINGS = re.compile(
    r"close-?up|full[- ](?:body|length)|half[- ]body|head and shoulders|wide|(?:low|high)[- ]angle|black and white|"
    r"profile|selfie",
    re.IGNORECASE,
)
#: What a caption must not go on with.
_LOOSE = re.compile(r"(?:[ ,;.]*\b(?:and|but|who|she|he|they|it)\b)+", re.IGNORECASE)
_LOOSE_AT_FIRST = re.compile(
    r"(?:[ ,;.]+|(?:and|but|with|who|she|he|they|it|is|are|has|have)\b)+", re.IGNORECASE
)


def without_identity(text: str, class_word: str) -> str:
    """One line without what tells somebody apart from others, beginning with ``[trigger] [class]``."""
    opening = _OPENING.match(text)
    framing = _FRAMINGS.findall(opening["framing"] or "") if opening else []
    rest = _ASIDE.sub("", text[opening.end() :] if opening else text)
    people = rf"(?:{re.escape(class_word)}|{_PEOPLE})\b"
    rest = re.sub(rf"\b(?:(?:{_ABOUT_PEOPLE}){_BETWEEN}){{1,5}}(?={people})", "", rest, flags=re.IGNORECASE)
    subject = re.match(
        rf"(?:(?:an?|the|one) )?(?:(?P<doing>[a-z]+ing) )?{_kind(class_word)}{people}", rest, re.IGNORECASE
    )
    said = "".join(_parts_without_traits(rest[subject.end() :] if subject else rest)).rstrip(" ,;.")
    if subject:
        doing = subject["doing"]
        said = (f", {doing.lower()}," if doing else "") + said[_end(_LOOSE, said) :]
    else:
        said = said[_end(_LOOSE_AT_FIRST, said) :]
        said = f", {said[:1].lower()}{said[1:]}" if said else ""
    return "".join((f"{TRIGGER} {CLASS}", said, *(f", {each.lower()}" for each in framing)))


def _end(pattern: re.Pattern[str], text: str) -> int:
    """Where the text goes on behind what fits at its beginning."""
    found = pattern.match(text)
    return found.end() if found else 0


def _kind(class_word: str) -> str:
    """The breed or colour before the noun, where it is no person; before a person, an expression may stand."""
    return "" if re.fullmatch(_PEOPLE, class_word, re.IGNORECASE) else r"(?:[\w-]+,? ){0,4}?"


def _parts_without_traits(text: str) -> Iterator[str]:
    """The parts of the sentences that name no trait."""
    instead = ""
    for part in _PART.split(_TRAIT.sub("\0", text)):
        if "\0" in part:
            instead = " with" if part.startswith(" with ") else instead
            continue
        yield part.replace(" and", instead, 1) if instead and part.startswith(" and ") else part
        instead = ""
