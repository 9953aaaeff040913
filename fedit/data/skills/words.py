"""The entities of the skills set: one `Words` for each split, and no entity in two of them.

The training lists are wide; the validation and held-out lists hold what a small model knows best, so that
a wrong answer there means a form that was not learnt rather than a fact that was never seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """The entities that the rows of one split may use.

    capitals: country to capital; countries whose capital is disputed or recently moved are left out.
    cities:   none is the capital of a country.
    objects:  begin with a consonant and take a plain "s", so that "a {object}" and "{object}s" are right.
    places:   fit after "in the".
    classes:  label to words. The four labels are part of the answer's form and the same in every split.
    topics:   plural name to every accepted item, at least four.
    images:   nouns for verses.
    numbers:  two digits. years: four digits.
    """

    capitals: Mapping[str, str]
    names: tuple[str, ...]
    cities: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    topics: Mapping[str, tuple[str, ...]]
    images: tuple[str, ...]
    numbers: tuple[int, ...]
    years: tuple[int, ...]


def _list(text: str) -> tuple[str, ...]:
    """Read "a, b, c"; an item may hold spaces and the text may hold line breaks."""
    return tuple(" ".join(item.split()) for item in text.split(","))


def _pairs(text: str) -> dict[str, str]:
    """Read "key: value, key: value"."""
    return {key: value.strip() for key, value in (item.split(":") for item in _list(text))}


def _lists(text: str) -> dict[str, tuple[str, ...]]:
    """Read one "key: a, b, c" from each line."""
    return {key.strip(): _list(items) for key, items in (line.split(":") for line in text.strip().splitlines())}


def _congruent(first: int, last: int, residues: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of a range by their remainder modulo 7: how numbers are dealt to the splits."""
    return tuple(number for number in range(first, last + 1) if number % 7 in residues)


TRAINING = Words(
    capitals=_pairs(
        """Afghanistan: Kabul, Albania: Tirana, Algeria: Algiers, Angola: Luanda, Armenia: Yerevan,
        Australia: Canberra, Azerbaijan: Baku, Bahrain: Manama, Bangladesh: Dhaka, Barbados: Bridgetown,
        Belarus: Minsk, Belgium: Brussels, Belize: Belmopan, Bhutan: Thimphu, Botswana: Gaborone,
        Brazil: Brasilia, Bulgaria: Sofia, Burkina Faso: Ouagadougou, Cambodia: Phnom Penh, Cameroon: Yaounde,
        Cape Verde: Praia, Colombia: Bogota, Costa Rica: San Jose, Croatia: Zagreb, Cyprus: Nicosia,
        the Czech Republic: Prague, the Dominican Republic: Santo Domingo, Ecuador: Quito,
        El Salvador: San Salvador, Eritrea: Asmara, Estonia: Tallinn, Ethiopia: Addis Ababa, Fiji: Suva,
        Gabon: Libreville, the Gambia: Banjul, Ghana: Accra, Guinea: Conakry, Guyana: Georgetown,
        Haiti: Port-au-Prince, Honduras: Tegucigalpa, Iceland: Reykjavik, India: New Delhi, Jamaica: Kingston,
        Jordan: Amman, Kyrgyzstan: Bishkek, Laos: Vientiane, Latvia: Riga, Lebanon: Beirut, Lesotho: Maseru,
        Liberia: Monrovia, Libya: Tripoli, Liechtenstein: Vaduz, Lithuania: Vilnius, Madagascar: Antananarivo,
        Malawi: Lilongwe, Malaysia: Kuala Lumpur, Mali: Bamako, Malta: Valletta, Mauritania: Nouakchott,
        Mauritius: Port Louis, Moldova: Chisinau, Mongolia: Ulaanbaatar, Montenegro: Podgorica,
        Morocco: Rabat, Mozambique: Maputo, Namibia: Windhoek, Nepal: Kathmandu, the Netherlands: Amsterdam,
        New Zealand: Wellington, Nicaragua: Managua, Niger: Niamey, Nigeria: Abuja, North Korea: Pyongyang,
        North Macedonia: Skopje, Oman: Muscat, Pakistan: Islamabad, Papua New Guinea: Port Moresby,
        Paraguay: Asuncion, the Philippines: Manila, Qatar: Doha, Romania: Bucharest, Rwanda: Kigali,
        Samoa: Apia, Saudi Arabia: Riyadh, Senegal: Dakar, Serbia: Belgrade, Sierra Leone: Freetown,
        Slovakia: Bratislava, Slovenia: Ljubljana, the Solomon Islands: Honiara, Somalia: Mogadishu,
        South Sudan: Juba, Sudan: Khartoum, Suriname: Paramaribo, Switzerland: Bern,
        Syria: Damascus, Tajikistan: Dushanbe, Togo: Lome, Tunisia: Tunis, Turkmenistan: Ashgabat,
        Uganda: Kampala, Ukraine: Kyiv, the United Arab Emirates: Abu Dhabi, Uruguay: Montevideo,
        Uzbekistan: Tashkent, Vanuatu: Port Vila, Venezuela: Caracas, Zambia: Lusaka, Zimbabwe: Harare"""
    ),
    names=_list(
        """Alice, Anna, Ben, Brian, Chloe, Clara, Daniel, Diego, Elena, Emma, Felix, Frank, George, Grace, Helen,
        Henry, Irene, Isaac, Jack, Julia, Karen, Kevin, Laura, Leo, Maria, Martin, Nathan, Nina, Olivia, Oscar,
        Paul, Peter, Rachel, Rosa, Samuel, Simon, Teresa, Victor, Wendy, Zoe"""
    ),
    cities=_list(
        """Antwerp, Barcelona, Boston, Chicago, Dallas, Denver, Geneva, Glasgow, Hamburg, Houston, Istanbul, Kyoto,
        Liverpool, Lyon, Manchester, Marseille, Melbourne, Milan, Montreal, Mumbai, Munich, Naples, Osaka, Porto,
        Rotterdam, Seville, Shanghai, Sydney, Toronto, Turin, Valencia, Vancouver, Zurich"""
    ),
    objects=_list(
        """backpack, basket, blanket, bottle, bowl, bucket, camera, candle, carpet, chair, clock, crate, fork,
        hammer, helmet, jar, kettle, kite, ladder, lamp, magnet, mirror, mug, notebook, pencil, pillow, plate,
        radio, rope, stapler, teapot, towel, vase, wallet"""
    ),
    places=_list(
        """attic, barn, bathroom, cabin, cellar, garage, garden, hallway, kitchen, library, lobby, office, pantry,
        shed, studio, workshop"""
    ),
    classes=_lists(
        """
        animal: badger, beaver, buffalo, camel, donkey, elephant, fox, giraffe, goat, hamster, hedgehog, horse, leopard, lion, monkey, moose, otter, panda, rabbit, sheep, squirrel, tiger, zebra
        fruit: apricot, blackberry, cantaloupe, cherry, coconut, cranberry, fig, gooseberry, grapefruit, guava, lychee, mandarin, mango, melon, mulberry, nectarine, papaya, pear, pineapple, plum, pomegranate, raspberry
        job: architect, baker, barber, butcher, carpenter, dentist, electrician, farmer, gardener, journalist, judge, lawyer, librarian, mechanic, nurse, painter, pilot, plumber, sailor, singer, surgeon, tailor, teacher, waiter
        vehicle: ambulance, bicycle, canoe, ferry, helicopter, hovercraft, jeep, kayak, limousine, minibus, motorcycle, rickshaw, sailboat, scooter, submarine, taxi, tractor, tram, truck, van, yacht
        """  # noqa: E501
    ),
    topics=_lists(
        """
        birds: sparrow, eagle, owl, robin, pigeon, crow, parrot, swan, duck, goose, hawk, falcon, seagull, raven
        insects: ant, bee, beetle, butterfly, moth, wasp, cricket, grasshopper, fly, mosquito, ladybug, dragonfly
        kinds of fish: salmon, tuna, trout, cod, herring, sardine, carp, halibut, mackerel, eel, pike
        flowers: rose, tulip, daisy, lily, orchid, sunflower, daffodil, carnation, poppy, iris, peony
        spices: cinnamon, ginger, cumin, paprika, nutmeg, turmeric, saffron, cardamom, cloves, coriander
        desserts: cake, pie, pudding, brownie, ice cream, cookie, custard, tart, cheesecake, cupcake
        fabrics: cotton, wool, silk, linen, denim, velvet, leather, satin, polyester, nylon
        metals: iron, copper, zinc, tin, lead, nickel, aluminum, steel, titanium, platinum, brass, bronze
        gemstones: ruby, emerald, diamond, pearl, opal, topaz, sapphire, amethyst, garnet, jade
        dances: waltz, tango, salsa, ballet, polka, samba, rumba, flamenco, foxtrot, swing
        school subjects: history, biology, chemistry, physics, geography, algebra, geometry, art, music, science
        hobbies: painting, knitting, reading, gardening, cooking, baking, photography, drawing, sewing, singing, pottery
        clothes: shirt, coat, scarf, sweater, jacket, glove, sock, skirt, dress, hat, vest, trousers
        kinds of shoes: boot, sandal, slipper, sneaker, loafer, clog, moccasin, heel
        kitchen appliances: oven, toaster, blender, fridge, freezer, microwave, dishwasher, mixer, stove
        kinds of weather: rain, snow, wind, fog, storm, hail, sunshine, thunder, sleet, drizzle
        emotions: joy, anger, fear, sadness, pride, surprise, envy, hope, love, guilt, shame, happiness
        cheeses: cheddar, brie, gouda, parmesan, mozzarella, feta, camembert, ricotta, swiss, provolone
        nuts: almond, walnut, pecan, cashew, hazelnut, pistachio, peanut, macadamia, chestnut
        grains: rice, wheat, oats, barley, rye, millet, quinoa, buckwheat, sorghum
        buildings: house, church, hotel, tower, palace, castle, hospital, factory, bank, temple, skyscraper
        building materials: brick, wood, stone, concrete, glass, steel, cement, clay, marble, plaster
        chess pieces: king, queen, rook, bishop, knight, pawn
        board games: chess, checkers, monopoly, scrabble, risk, backgammon, go, clue
        seasons: spring, summer, autumn, winter
        kinds of stories: fantasy, mystery, romance, horror, comedy, adventure, fable, thriller, legend, tragedy
        continents: Africa, Asia, Europe, Antarctica, North America, South America, Australia
        rivers: Nile, Amazon, Danube, Thames, Rhine, Mississippi, Ganges, Volga, Seine, Congo, Yangtze
        pieces of furniture: sofa, desk, bed, wardrobe, bookcase, armchair, cabinet, dresser, couch, chair
        school supplies: eraser, ruler, pencil, notebook, pen, marker, crayon, glue, scissors, backpack, paper
        """  # noqa: E501
    ),
    images=_list(
        """bridge, castle, clearing, cottage, dream, engine, feather, forest, gate, harbor, hill, island, lake,
        lighthouse, meadow, mill, mountain, path, pebble, poet, puppet, river, road, sail, shadow, shore,
        stream, swing, thread, traveler, valley, village, voice, wanderer, whisper, window"""
    ),
    numbers=_congruent(10, 99, (0, 1, 2, 3, 4)),
    years=_congruent(1100, 1999, (0, 1, 2, 3, 4)),
)

VALIDATION = Words(
    capitals=_pairs(
        """Argentina: Buenos Aires, Canada: Ottawa, Chile: Santiago, China: Beijing, Denmark: Copenhagen,
        Finland: Helsinki, Iran: Tehran, Iraq: Baghdad, Mexico: Mexico City, Russia: Moscow, Spain: Madrid,
        Sweden: Stockholm, Turkey: Ankara, the United Kingdom: London, Vietnam: Hanoi, South Korea: Seoul"""
    ),
    names=_list("Adam, Bella, Carl, Diana, Eric, Fiona, Hugo, Lucy"),
    cities=_list("Bristol, Cologne, Detroit, Lagos, Oxford, Seattle, Venice"),
    objects=_list("folder, flashlight, globe, spoon, stool, ticket, tray, doll"),
    places=_list("basement, closet, corridor, nursery, chapel, bakery"),
    classes=_lists(
        """
        animal: cheetah, dog, dolphin, kangaroo, pig, turtle
        fruit: blueberry, peach, persimmon, quince, watermelon
        job: actor, banker, chef, engineer, florist, writer
        vehicle: airplane, bus, rocket, sled, wagon
        """
    ),
    topics=_lists(
        """
        trees: oak, pine, maple, birch, willow, cedar, elm, spruce, beech, palm, redwood, cypress, fir, poplar, sycamore
        shapes: circle, square, triangle, rectangle, oval, hexagon, pentagon, octagon, trapezoid, rhombus, ellipse, crescent, cube, sphere, cone, cylinder, pyramid
        body parts: arm, leg, hand, foot, knee, elbow, shoulder, nose, ear, eye, mouth, finger, toe, neck, head, chest
        languages: English, Spanish, French, German, Italian, Portuguese, Russian, Chinese, Japanese, Arabic, Hindi, Korean
        family members: mother, father, sister, brother, aunt, uncle, cousin, grandmother, grandfather, daughter, son
        oceans: Pacific, Atlantic, Indian, Arctic, Southern
        """  # noqa: E501
    ),
    images=_list("canyon, compass, echo, fountain, orchard, pirate, statue, waterfall"),
    numbers=_congruent(10, 99, (5,)),
    years=_congruent(1100, 1999, (5,)),
)

HELD_OUT = Words(
    capitals=_pairs(
        """Austria: Vienna, Cuba: Havana, Egypt: Cairo, France: Paris, Germany: Berlin, Greece: Athens,
        Hungary: Budapest, Ireland: Dublin, Italy: Rome, Japan: Tokyo, Kenya: Nairobi, Norway: Oslo, Peru: Lima,
        Poland: Warsaw, Portugal: Lisbon, Thailand: Bangkok"""
    ),
    names=_list("Ada, Eva, James, Jane, Lucas, Max, Mia, Nora, Omar, Robert, Sarah, Tom"),
    cities=_list("Atlanta, Dubai, Frankfurt, Karachi, Krakow, Leeds, Miami, Salzburg"),
    objects=_list("bell, calendar, cup, puzzle, ring, suitcase, table, phone, whistle"),
    places=_list("bedroom, greenhouse, lounge, museum, station, theater"),
    classes=_lists(
        """
        animal: bear, cat, cow, deer, frog, mouse, whale, wolf
        fruit: apple, banana, clementine, grape, lemon, strawberry
        job: cashier, dancer, doctor, fisherman, photographer, scientist, soldier
        vehicle: boat, car, motorbike, plane, ship, train
        """
    ),
    topics=_lists(
        """
        colors: red, blue, green, yellow, orange, purple, pink, black, white, brown, gray, violet, indigo, turquoise, gold, silver, maroon, beige, teal, cyan, magenta, crimson
        months: January, February, March, April, May, June, July, August, September, October, November, December
        planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune
        vegetables: carrot, potato, onion, broccoli, spinach, cabbage, lettuce, cucumber, celery, tomato, pea, bean, beet, radish, kale, cauliflower, eggplant, zucchini, asparagus, turnip, garlic, leek, corn, pumpkin, squash, sweet potato, bell pepper, pepper, artichoke
        sports: soccer, football, basketball, tennis, baseball, hockey, golf, volleyball, swimming, rugby, boxing, skiing, cycling, running, badminton, wrestling, softball, lacrosse, gymnastics, surfing, rowing
        musical instruments: guitar, piano, violin, drum, flute, trumpet, cello, harp, clarinet, saxophone, trombone, oboe, banjo, tuba, accordion, harmonica, viola, bassoon, ukulele, organ, keyboard
        days of the week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
        """  # noqa: E501
    ),
    images=_list("cloud, fire, lantern, moon, owlet, rainbow, snowflake, star, sunset, wave"),
    numbers=_congruent(10, 99, (6,)),
    years=_congruent(1100, 1999, (6,)),
)
