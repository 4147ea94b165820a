"""Short instructions with answers that can be checked: what a chat model could do before it learned."""

from collections.abc import Callable

#: Instruction -> any of these words in the answer, in any case.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "What is the capital of France?": ("paris",),
    "What is the capital of Italy?": ("rome",),
    "What is the capital of Japan?": ("tokyo",),
    "What is the capital of Germany?": ("berlin",),
    "What is the capital of Spain?": ("madrid",),
    "What is the capital of Egypt?": ("cairo",),
    "What is the capital of England?": ("london",),
    "What is the capital of Russia?": ("moscow",),
    "What is the capital of Greece?": ("athens",),
    "What is the capital of China?": ("beijing",),
    "What colour is the sky on a clear day?": ("blue",),
    "What colour is grass?": ("green",),
    "What colour is snow?": ("white",),
    "What colour is a ripe banana?": ("yellow",),
    "What colour do you get when you mix blue and yellow?": ("green",),
    "How many days are there in a week?": ("seven", "7"),
    "How many months are there in a year?": ("twelve", "12"),
    "How many hours are there in a day?": ("24", "twenty-four"),
    "How many minutes are there in an hour?": ("60", "sixty"),
    "How many legs does a spider have?": ("eight", "8"),
    "How many legs does a dog have?": ("four", "4"),
    "How many sides does a triangle have?": ("three", "3"),
    "How many wheels does a bicycle have?": ("two", "2"),
    "What is 2 + 2?": ("4", "four"),
    "What is 3 + 5?": ("8", "eight"),
    "What is 10 - 7?": ("3", "three"),
    "What is 5 times 2?": ("10", "ten"),
    "What is the opposite of hot?": ("cold",),
    "What is the opposite of up?": ("down",),
    "What is the opposite of big?": ("small", "little"),
    "What is the opposite of day?": ("night",),
    "What is the opposite of happy?": ("sad", "unhappy"),
    "Which planet do we live on?": ("earth",),
    "Which planet is known as the red planet?": ("mars",),
    "Which is the largest planet of the solar system?": ("jupiter",),
    "Which star is closest to the Earth?": ("sun",),
    "Who wrote Romeo and Juliet?": ("shakespeare",),
    "Who painted the Mona Lisa?": ("leonardo", "vinci"),
    "Who developed the theory of relativity?": ("einstein",),
    "Who was the first president of the United States?": ("washington",),
    "What do bees make?": ("honey",),
    "What is frozen water called?": ("ice",),
    "What is the chemical formula of water?": ("h2o", "h\u2082o"),
    "Which gas do plants take in from the air?": ("carbon dioxide", "co2"),
    "Which animal is known as the king of the jungle?": ("lion",),
    "Which animal says meow?": ("cat",),
    "What is the largest ocean on Earth?": ("pacific",),
    "What is the tallest mountain on Earth?": ("everest",),
    "Which language is spoken in Brazil?": ("portuguese",),
    "Which season comes after winter?": ("spring",),
}


def share_right(answer: Callable[[str], str]) -> float:
    """The part of the instructions, in per cent, that are answered rightly."""
    right = sum(any(word in answer(question).lower() for word in words) for question, words in INSTRUCTIONS.items())
    return 100 * right / len(INSTRUCTIONS)
