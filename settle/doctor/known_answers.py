"""Questions that every instruction-tuned model answers alike, and plain prose: what a set-up finds likely, or not.

The answers are what a sound set-up gives a high likelihood; whether they are true matters less. Written for settle.
"""

from typing import NamedTuple


class KnownAnswer(NamedTuple):
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
