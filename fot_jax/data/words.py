"""Words for generated tasks: pairs like "brave-otter", none a part of another.

No adjective ends another one and no noun begins another one, so a pair found in a text is that pair.
"""

ADJECTIVES = """
amber ample ancient bitter blue bold brave brief bright broad bronze busy calm candid cheap clever cloudy coarse
copper cosmic crisp curly daring deep dense dusty eager early easy empty faint famous fancy fast fierce fine firm flat
fluffy fond frank free fresh frosty fuzzy gentle giant glad glossy golden grand green happy harsh hasty heavy hollow
honest humble icy idle jolly kind large late lazy light little lively lofty loud loyal lucky mellow merry mild misty
modest mute narrow neat nimble noble noisy odd olive pale patient plain polite proud pure quick quiet rapid rare ripe
robust rosy rough round royal rusty salty secret shallow sharp shiny short shy silent silver simple sleepy slim slow
small smooth snowy soft solid sour spare stark steady steep stern still strict strong sturdy subtle sudden sunny sweet
swift tall tame tender thick tidy tiny tough vast vivid warm weary wide wild windy wise witty young zesty
""".split()  # noqa: SIM905 (a line a word otherwise)
NOUNS = """
acorn actor agent album alley anchor ankle apple apron arrow atlas attic bacon badge baker balloon banana banjo barrel
basket beach beacon bean beetle bell bench bicycle birch biscuit blanket boat bottle boulder bridge broom bubble
bucket button cabin cactus cake camel candle canoe canyon carpet carrot castle cave cedar cello chair cherry chest
circle clock cloud coast coffee comet copper coral cotton cougar cradle crane crayon creek crown curtain dagger daisy
dancer desert desk diamond doctor dolphin donkey door dragon drawer drum eagle easel elbow elm ember engine falcon
farmer feather fence ferry fiddle field finger flute forest fork fossil fox galaxy garden garlic ginger glacier glove
goose grape guitar hammer harbor hawk hedge helmet heron hill honey horse hotel island ivory jacket jaguar jar jewel
jungle kettle kitten knight ladder lake lantern lemon lettuce library lizard lobster locket magnet mango maple marble
market meadow melon mirror monkey moon moth mountain mouse muffin museum napkin needle nest nurse oasis ocean octopus
olive onion orchid otter oven owl oyster paddle palace panda paper parrot pasta peach pebble pencil pepper piano
pickle pigeon pillow pilot pirate planet plum pocket pond poppy porch potato prairie puddle pumpkin puzzle rabbit
raccoon radio raven ribbon river rocket saddle sailor salmon sandal sausage scarf school seal shadow shell shovel
singer skate sparrow spider spoon squirrel stable statue street summit sunset table tailor teacup temple thunder
ticket tiger tomato tower trumpet tulip tunnel turtle valley velvet violin volcano wagon walnut walrus whale wheel
willow window winter wolf yacht zebra zipper
""".split()  # noqa: SIM905 (a line a word otherwise)

WORD_COUNT = len(ADJECTIVES) * len(NOUNS)


def word(number: int) -> str:
    """Returns the pair of a number in 0..WORD_COUNT - 1."""
    return f"{ADJECTIVES[number // len(NOUNS)]}-{NOUNS[number % len(NOUNS)]}"
