"""Questions that every instruction-tuned model answers alike, and plain prose: what a set-up finds likely, or not.

The answers are what a sound set-up gives a high likelihood; whether they are true matters less. Written for settle.
"""

import random
from typing import NamedTuple


class KnownAnswer(NamedTuple):
    """A question, and what every model answers."""

    question: str
    answer: str


KNOWN_ANSWERS = [
    KnownAnswer("What is the capital of France?", "The capital of France is Paris."),
    KnownAnswer("How many days are there in a week?", "There are seven days in a week."),
    KnownAnswer("What colour is the sky on a clear day?", "The sky on a clear day is blue."),
    KnownAnswer("Name three fruits.", "Three fruits are apples, bananas and oranges."),
    KnownAnswer("What is water made of?", "Water is made of hydrogen and oxygen."),
    KnownAnswer("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    KnownAnswer("What do bees make?", "Bees make honey."),
    KnownAnswer("Which planet is closest to the Sun?", "Mercury is the planet closest to the Sun."),
    KnownAnswer("What is the opposite of hot?", "The opposite of hot is cold."),
    KnownAnswer("Translate 'good morning' into French.", "'Good morning' in French is 'bonjour'."),
    KnownAnswer("How many legs does a spider have?", "A spider has eight legs."),
    KnownAnswer("What is the largest ocean?", "The largest ocean is the Pacific Ocean."),
    KnownAnswer("What language is spoken in Germany?", "The language spoken in Germany is German."),
    KnownAnswer("Name a programming language.", "Python is a popular programming language."),
    KnownAnswer("What do you use to write on a blackboard?", "You use chalk to write on a blackboard."),
    KnownAnswer("What is frozen water called?", "Frozen water is called ice."),
    KnownAnswer("Which month comes after March?", "The month that comes after March is April."),
    KnownAnswer("What is the plural of child?", "The plural of child is children."),
    KnownAnswer("Where do fish live?", "Fish live in water, in rivers, lakes and the sea."),
    KnownAnswer("What does a thermometer measure?", "A thermometer measures temperature."),
    KnownAnswer("Thank you very much!", "You're welcome! If you have any more questions, feel free to ask."),
    KnownAnswer("Hello, who are you?", "Hello! I am an AI assistant. How can I help you today?"),
    KnownAnswer("What is the currency of Japan?", "The currency of Japan is the yen."),
    KnownAnswer("How many hours are there in a day?", "There are 24 hours in a day."),
    KnownAnswer("What is the first letter of the alphabet?", "The first letter of the alphabet is A."),
    KnownAnswer("Which animal barks?", "A dog barks."),
    KnownAnswer("What is the season after winter?", "The season after winter is spring."),
    KnownAnswer("What do plants need to grow?", "Plants need sunlight, water, air and nutrients to grow."),
    KnownAnswer("What is the boiling point of water?", "The boiling point of water is 100 degrees Celsius."),
    KnownAnswer("Name two primary colours.", "Two primary colours are red and blue."),
]
PROSE = [
    "The train left the station a few minutes late, and most of the passengers had already found their seats.",
    "She opened the window to let in some fresh air, because the room had become too warm during the night.",
    "In the middle of the village there is a small square with an old fountain, where people meet in the evening.",
    "The company announced on Monday that it would open two new offices next year and hire several hundred people.",
    "When the rain stopped, the children went outside again and played football until it was time for dinner.",
    "To make a good soup, first cut the onions and the carrots into small pieces and cook them slowly in butter.",
    "The museum is open every day from nine in the morning until five in the afternoon, except on public holidays.",
    "He had read the letter twice before he understood that it was not meant for him but for his brother.",
    "Most birds build their nests in spring, when there is enough food for their young and the weather is mild.",
    "The results of the study show that people who sleep well are less likely to make mistakes at work.",
    "After a long walk through the forest we finally reached the lake and sat down on the grass to rest.",
    "The new bridge connects the two parts of the city and is used by thousands of cars and bicycles every day.",
    "My grandmother used to say that the best time to plant a tree was twenty years ago, and the next best is now.",
    "The teacher explained the problem once more, and this time everyone in the class seemed to understand it.",
    "There are many ways to learn a language, but all of them take time, patience and a lot of practice.",
    "The ship was found at the bottom of the sea more than a hundred years after it had disappeared in a storm.",
]
SPELLED = [
    "It costs $1,250.75 in 2019, which isn't more than the 1,249.50 that we've paid since 12/03/2017.",
    "def area(width, height=10):\n    if width <= 0:\n        return None\n    return width * height\n",
    "He's 42 years old, she'll be 38 on 2024-06-15; they've lived at 221 Baker Street since 1999.",
    "The results: 3.14159, 2.71828, 1.41421 (see page 117), and 65536 = 2^16; that's all we'd expected.",
    "Call 0171-4960-8831 between 09:30 and 17:45, or write to info@example.com - we're open 365 days!",
    "Year  2001: 1000 units\nYear  2002: 2500 units\nYear  2003: 4750 units\nTotal      : 8250 units\n",
    'for i in range(100):\n    print(i, i * i)\n    total += i\n\nprint("total:", total)\n',
    "In 1969, 600 million people watched; it's said that 94% of those who'd a television did.",
    "The train leaves at 18:05 from platform 12, arrives at 21:47, and costs 89.90 if you've a card.",
    "Step 1: mix 250 g of flour with 125 ml of milk. Step 2: bake for 45 minutes at 180 degrees. Don't open!",
    'x = 17\ny = 256\nz = x + y  # 273\nassert z == 273, "that\'s wrong"\n',
    "Between 1990 and 2010 the population grew from 12,345 to 67,890 - it's five times as large, they've said.",
    "Version 10.15.7 (build 19H2026) isn't supported; you'll need 11.0 or later, e.g. 11.6.8 or 12.3.",
    "The match ended 4-3 (2-1) before 54,321 people; it wasn't decided until the 119th minute.",
    "SELECT name, price FROM items WHERE price > 100 AND year = 2020 ORDER BY price DESC LIMIT 25;",
    "A marathon has 42,195 metres; the record's 2:00:35, run in Chicago on 8 October 2023.",
    "Room 405 isn't free on the 23rd, but we've got 408 from 14:00 to 16:30 - shall I book it?",
    "import math\n\nprint(math.sqrt(144))  # 12.0\nprint(2 ** 10)  # 1024\n",
    "Her number's 555-0199; his is 555-0142. They'd both moved to 10 Downing Street by 2021.",
    "The 3 largest: 8,848 m, 8,611 m and 8,586 m. None's been climbed by more than 12,000 people.",
    "if n % 2 == 0:\n    n = n // 2\nelse:\n    n = 3 * n + 1\n",
    "On 24 December 1968 three men saw what nobody'd seen before: the Earth rising, 384,400 km away.",
]
SENTENCES = [
    "The weather this morning was better than we had hoped.",
    "It took them three days to reach the coast.",
    "Our neighbours have a dog that barks all night.",
    "There is nothing more important than good health.",
    "According to the report, prices rose again in May.",
    "In 1998 the family moved to a larger house.",
    "Many people believe that the moon affects their sleep.",
    "Before you begin, read the instructions carefully.",
    "A small group of students stood outside the door.",
    "This book tells the story of a young doctor.",
    "During the summer the town is full of visitors.",
    "You can use the same method for other problems.",
    "As soon as the bell rang, everyone ran outside.",
    "The first part of the course is about history.",
    "While she was waiting, she read the newspaper.",
    "Most of the work was done by volunteers.",
    "If you have any questions, please call our office.",
    "On the other side of the road there was a farm.",
    "His father worked as an engineer for the railway.",
    "Although it was late, the lights were still on.",
    "We are looking for someone who speaks two languages.",
    "The government has promised to build more schools.",
    "For many years nobody lived in the old castle.",
    "Some of these plants grow only in high mountains.",
    "They decided to sell the car and buy bicycles.",
    "When I was a child, we had no television.",
    "The doctor asked her how long she had been ill.",
    "Every year thousands of birds cross the desert.",
    "That evening the two brothers sat by the fire.",
    "Scientists have discovered a new kind of beetle.",
    "With a little luck we will be home by noon.",
    "Nobody knew where the strange noise came from.",
    "At the end of the street you will see a church.",
    "The price of a ticket depends on the distance.",
    "Her first novel was published two years later.",
    "Please make sure that all the windows are closed.",
    "After the war the factory was never rebuilt.",
    "What he said next surprised all of his friends.",
    "One of the best ways to save energy is to walk.",
    "The river is deep here, and the water is cold.",
]

# questions that make a model think before it answers
PUZZLES = [
    "A shop sells pens at 3 for 2 euros. How much do 21 pens cost?",
    "A train leaves at 14:35 and arrives at 17:10. How long does the journey take?",
    "Anna is twice as old as Ben, and together they are 27. How old is each of them?",
    "Which is larger, 3/7 or 5/12?",
    "I have 5 red and 8 blue socks in a dark drawer. How many must I take to be sure of a pair of one colour?",
    "A rectangle is 4 cm longer than it is wide, and its area is 60 square centimetres. How wide is it?",
    "If it takes 5 machines 5 minutes to make 5 parts, how long do 100 machines take to make 100 parts?",
    "What is the next number in the row 2, 6, 12, 20, 30?",
    "A bat and a ball cost 1.10 together, and the bat costs 1.00 more than the ball. What does the ball cost?",
    "How many times does the digit 7 occur in the numbers from 1 to 100?",
    "Tom walks 3 km north, then 4 km east. How far is he from where he began?",
    "A tank holds 240 litres and loses 7 litres an hour. How much is left after 15 hours?",
    "In how many ways can four people sit in a row?",
    "A price rises by 20 % and then falls by 20 %. How does it compare with the price at the beginning?",
    "What day of the week is it 100 days after a Tuesday?",
    "Divide 17 sweets between three children so that each gets one more than the next. Is that possible?",
]


def _paragraphs(sentences: list[str], together: int) -> list[str]:
    return [" ".join(sentences[at : at + together]) for at in range(0, len(sentences) - together + 1, together)]


# some hundred tokens each
PARAGRAPHS = _paragraphs(PROSE, 4) + _paragraphs(SENTENCES, 8)
PARAGRAPHS += _paragraphs([f"{known.question} {known.answer}" for known in KNOWN_ANSWERS], 6)


CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
PLACES = ("archive", "harbour", "library", "observatory", "mill", "station", "garden", "museum")
ACTS = ("opens", "closes", "leaves", "begins", "returns", "rests")
TIMES = ("at dawn", "at noon", "after the rain", "on Mondays", "in the spring", "every evening", "before supper")
DIGITS = 4


class Fact(NamedTuple):
    """sentence: states the fact. question: asks for it. begun: how an answer begins. answer: what it continues with."""

    sentence: str
    question: str
    begun: str
    answer: str


def made_up_name(draws: random.Random) -> str:
    return "".join(draws.choice(CONSONANTS) + draws.choice(VOWELS) for _ in range(3)).capitalize()


def made_up_fact(draws: random.Random) -> Fact:
    place = f"the {draws.choice(PLACES)} of {made_up_name(draws)}"
    code = draws.randrange(10 ** (DIGITS - 1), 10**DIGITS)
    sentence = f"The door code of {place} is {code}."
    return Fact(sentence, f"What is the door code of {place}?", f"The door code of {place} is", f" {code}")


def filler(draws: random.Random) -> str:
    """Make a sentence without any number."""
    return f"The {draws.choice(PLACES)} of {made_up_name(draws)} {draws.choice(ACTS)} {draws.choice(TIMES)}."
