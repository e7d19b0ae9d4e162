"""The names of the category table's rows, and other words for them.

Section 15 of docs/reference/models/dfam.md; `ris.reference.dfam.category_table` makes the
rows.
"""

from __future__ import annotations

from typing import Any

_THINGS = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball,
kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush"""

_STUFF = """banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower,
fruit, gravel, house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river,
road, roof, sand, sea, shelf, snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile,
wall-wood, water-other, window-blind, window-other, tree-merged, fence-merged, ceiling-merged,
sky-other-merged, cabinet-merged, table-merged, floor-other-merged, pavement-merged,
mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged, building-other-merged,
rock-merged, wall-other-merged, rug-merged"""


_SYNONYMS = """
person: man, woman, guy, lady, gentleman, dude, gal, lad, kid, child, boy, girl, baby, toddler,
    infant, teen, teenager, adult, male, female, human, people, somebody, someone, mom, mother, mum,
    dad, father, son, daughter, brother, sister, grandma, grandmother, grandpa, grandfather, bride,
    groom, couple, player, baseball player, tennis player, soccer player, batter, hitter, catcher,
    pitcher, umpire, referee, ref, goalie, coach, fan, spectator, skier, snowboarder, skateboarder,
    skater, surfer, rider, biker, cyclist, bicyclist, motorcyclist, driver, passenger, pedestrian,
    runner, swimmer, jockey, cowboy, chef, baker, waiter, waitress, bartender, cop, policeman,
    policewoman, police officer, officer, fireman, firefighter, soldier, sailor, pilot, worker,
    farmer, vendor, student, teacher, doctor, nurse, musician, singer, dancer, photographer,
    businessman, businesswoman, girlfriend, boyfriend, wife, husband, friend, fellow, bro, chick,
    mama, papa
bicycle: bike, push bike, pushbike, cycle, mountain bike, tricycle
car: automobile, auto, sedan, suv, taxi, cab, taxi cab, van, minivan, hatchback, station wagon,
    convertible, jeep, police car, race car, sports car, vehicle
motorcycle: motorbike, motor bike, motor cycle, scooter, moped, dirt bike, harley
airplane: plane, aeroplane, air plane, aircraft, jet, airliner, jetliner, jumbo jet, biplane,
    fighter jet
bus: school bus, double decker, double decker bus, minibus, tour bus, trolley bus
train: locomotive, train car, train engine, tram, trolley, streetcar, railcar, railway car
truck: lorry, pickup, pickup truck, pick up truck, pick up, fire truck, firetruck, fire engine, dump
    truck, tow truck, semi, semi truck, food truck, garbage truck
boat: ship, yacht, sailboat, sailing boat, canoe, kayak, ferry, dinghy, rowboat, row boat, raft,
    gondola, motorboat, speedboat, tugboat
traffic light: traffic signal, stoplight, stop light, traffic lamp, street signal
fire hydrant: hydrant, fire plug
stop sign: stopsign
parking meter: meter
bench: park bench
bird: duck, goose, pigeon, seagull, gull, parrot, owl, swan, chicken, rooster, hen, crow, eagle,
    hawk, penguin, pelican, flamingo, peacock, ostrich, turkey, heron, sparrow, duckling, parakeet,
    dove
cat: kitten, kitty, kitty cat, feline, tabby
dog: puppy, pup, doggy, doggie, hound, poodle, bulldog, terrier, dachshund, labrador, retriever,
    husky, beagle, canine
horse: pony, mare, stallion, foal, colt, bronco
sheep: lamb, ram, ewe
cow: cattle, bull, calf, ox, steer, heifer
bear: cub, bear cub, polar bear, grizzly, grizzly bear, black bear, brown bear
backpack: back pack, rucksack, knapsack, book bag, bookbag
umbrella: parasol
handbag: hand bag, purse, tote, tote bag, shoulder bag, bag
tie: necktie, neck tie, bow tie, bowtie
suitcase: suit case, luggage, baggage, briefcase
frisbee: frisbie, frisby, flying disc, flying disk, disc, disk
skis: ski
snowboard: snow board
sports ball: ball, soccer ball, football, basketball, baseball, tennis ball, volleyball, beach ball,
    softball
baseball bat: bat
baseball glove: glove, mitt, baseball mitt
skateboard: skate board, longboard
surfboard: surf board, boogie board, bodyboard
tennis racket: racket, racquet, tennis racquet
bottle: water bottle, wine bottle, beer bottle
wine glass: wineglass, champagne glass, goblet, stemware
cup: mug, tumbler, drinking glass, teacup, tea cup, coffee cup, coffee mug
knife: butter knife, steak knife, cleaver
spoon: teaspoon, tablespoon, ladle, soup spoon
bowl: dish, soup bowl
sandwich: burger, hamburger, cheeseburger, panini, hoagie, sub sandwich, blt
orange: tangerine, mandarin, clementine
broccoli: brocolli, brocoli, broccolli
hot dog: hotdog, wiener, weiner, frankfurter, chili dog
pizza: pizza pie
donut: doughnut
cake: cupcake, birthday cake, wedding cake, cheesecake
chair: armchair, arm chair, seat, recliner, rocking chair, folding chair, office chair
couch: sofa, loveseat, love seat, settee, futon
potted plant: plant, houseplant, house plant, pot plant, potted flower, flower pot, flowerpot
bed: bunk bed, bunk, mattress, cot
dining table: table, desk, dinner table, kitchen table, coffee table
toilet: commode, loo, toilet bowl
tv: television, tv set, television set, tv screen, telly, monitor, computer monitor, computer screen
laptop: laptop computer, notebook computer, macbook, computer
mouse: computer mouse
remote: remote control, controller, game controller, wii remote, wiimote, wii controller
keyboard: computer keyboard
cell phone: phone, cellphone, mobile phone, smartphone, smart phone, iphone, telephone
microwave: microwave oven
oven: stove, cooker, stove top, stovetop
toaster: toaster oven
sink: basin, washbasin, wash basin
refrigerator: fridge, freezer, refridgerator
book: textbook, notebook, paperback, novel
clock: wall clock, alarm clock, clock face
vase: flower vase, urn
scissors: scissor, shears
teddy bear: teddy, teddybear, stuffed bear, stuffed animal, plush bear
hair drier: hair dryer, hairdryer, hairdrier, blow dryer, blow drier
toothbrush: tooth brush
"""


def _split(names: str) -> list[str]:
    return [" ".join(name.split()) for name in names.split(",")]


def _parse_synonyms(text: str) -> dict[str, tuple[str, ...]]:
    """Lines of `name: synonym, synonym`; an indented line continues the one before."""
    lines = text.strip().replace("\n    ", " ").split("\n")
    pairs = (line.split(":") for line in lines)
    return {name: tuple(dict.fromkeys(_split(rest))) for name, rest in pairs}


COCO_THINGS: list[str] = _split(_THINGS)
"""The 80 COCO things: what RefCOCO asks for, and so what the category variant was trained on."""

COCO_PANOPTIC: list[str] = [*COCO_THINGS, *_split(_STUFF), "background"]
"""The 80 COCO things, the 53 stuff classes and `background`, in the table's order."""

SYNONYMS: dict[str, tuple[str, ...]] = _parse_synonyms(_SYNONYMS)
"""Other words for the things, with which `--category auto` guesses.

In the singular, lower case, without hyphens.
"""


def category_entries(count: int) -> list[dict[str, Any]]:
    """The first `count` rows of the table as they stand in a bundle's categories.json.

    docs/reference/bundle.md has its form.
    """
    things = set(COCO_THINGS)
    return [
        {"name": name, "thing": name in things, "synonyms": list(SYNONYMS.get(name, ()))}
        for name in COCO_PANOPTIC[:count]
    ]
