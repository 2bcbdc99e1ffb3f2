"""Words a base model knows too well to be trigger words.

Written by hand for this project: everyday English nouns, adjectives and verbs that captions are full of, the words
used as class words, and first names that are common in several countries. It is a warning's list, not a dictionary.
"""

_CLASSES = """
actor actress adult animal artist baby bear bird boy bride cat character child cow creature dog dragon elf face
family father female fish friend girl grandfather grandmother groom guy horse human husband kid king knight lady
lion male man men model monster mother mouse people person pet prince princess puppy queen rabbit robot sister
soldier student teacher tiger toddler toy wife wizard wolf woman women brother daughter son doctor hero
"""
_THINGS = """
arm art background bag ball beach bed bench body book bottle box bridge building bus camera car castle chair city
clothes cloud coat coffee color computer cup day desert door dress drawing ear earth eye field film fire floor flower
food foot forest fruit garden glass grass hair hand hat head heart hill home house ice image island jacket kitchen
lake leaf light lip mirror moon morning mountain mouth music neck night nose ocean office painting paper park path
phone photo photograph picture plant portrait rain ring river road rock room rose sand scene sea shirt shoe shop sky
smile snow song space spring star stone storm street studio style subject summer sun table town train tree wall
water wave window wine winter world
"""
_QUALITIES = """
angry beautiful best big black blonde blue bright brown calm clean close cold cool cute dark deep dry dutch famous
fast fine funny gold good great green grey happy hard heavy high hot large little long low lucky new nice old
orange pink pretty purple quiet real red rich round sad sharp short silver simple small soft strong sweet tall thin
tiny warm white wide wild yellow young
"""
_DOINGS = """
dance eat fly hold jump laugh look love play pose read ride run sing sit sleep stand swim talk test trigger walk
watch wear work write a an and at by for in of on the with
"""
_NAMES = """
adam alex alexander alice amy ana andrew anna anne anthony ben bob carlos charles charlie chloe chris christina
clara daniel david elena elizabeth ella emily emma eric eva felix frank george hannah harry helen henry ivan jack
jacob james jane jason jennifer jessica jim joe john jose joseph juan julia karen kate kevin laura leo lily lisa
liam linda lucas lucy luis luke maria mark martin mary max maya mia michael mike mohammed nick noah nora oliver
olivia oscar paul peter rachel richard robert rosa ryan sam sara sarah simon sofia sophia sophie stephen steve
susan thomas tim tom victor victoria william zoe
"""

COMMON_WORDS = frozenset(" ".join((_CLASSES, _THINGS, _QUALITIES, _DOINGS, _NAMES)).split())
