"""Rows of a narrow task, made by rule: an order in plain words, and the same as JSON.

    python bench/orders.py OUT.jsonl [--rows 600] [--seed 0]

A row is `{"messages": [user, assistant]}`. Such rows are what a small model is tuned for and what a draft is good at:
most of an answer is its form, the rest stands in the question.
"""

import argparse
import json
import random
from pathlib import Path


def listed(names: str) -> list[str]:
    return names.split(";")


FIRST = listed("Maria;Jonas;Aisha;Pedro;Lena;Tomas;Ingrid;Samir;Chloe;Viktor;Nadia;Oscar;Priya;Hugo;Elif;Marek")
LAST = listed("Lopez;Weber;Khan;Silva;Novak;Berg;Haddad;Martin;Petrov;Rossi;Okafor;Nilsson;Sharma;Costa;Demir;Kowal")
CITIES = listed("Lisbon;Hamburg;Lyon;Krakow;Porto;Malmo;Turin;Ghent;Brno;Graz;Bilbao;Leeds;Tampere;Split;Cork;Utrecht")
STREETS = listed("Mill Lane;Station Road;Harbour Street;Garden Row;Church Hill;Market Square;River Walk;Park Avenue")
ITEMS = listed(
    "printer paper;blue ink;desk lamps;standing mats;coffee filters;label rolls;safety gloves;cable ties;packing tape;"
    "whiteboard pens;wall clocks;paper cups;floor cleaner;hand towels;door stops;light bulbs"
)
UNITS = listed("boxes;packs;crates;bags")
MONTHS = listed("January;February;March;April;May;June;July;August;September;October;November;December")
OPENINGS = (
    "Please send {items} to {name}, {address}, by {day}.",
    "{name} of {address} wants {items}, no later than {day}.",
    "New order from {name}: {items}. Ship to {address} before {day}.",
    "Hello, this is {name}. We need {items} here at {address} by {day}.",
)
EXTRAS = ("", " It is urgent.", " Leave it at the door.", " Call before you come.")


def row(draw: random.Random) -> dict:
    """One order, asked and answered."""
    name = f"{draw.choice(FIRST)} {draw.choice(LAST)}"
    street, city = f"{draw.choice(STREETS)} {draw.randint(1, 99)}", draw.choice(CITIES)
    month, day = draw.randrange(12), draw.randint(1, 28)
    lines = [(draw.randint(2, 60), draw.choice(UNITS), item) for item in draw.sample(ITEMS, draw.randint(1, 3))]
    extra = draw.choice(EXTRAS)
    asked = draw.choice(OPENINGS).format(
        items=" and ".join(f"{many} {unit} of {item}" for many, unit, item in lines),
        name=name,
        address=f"{street}, {city}",
        day=f"{day} {MONTHS[month]}",
    )
    answer = {
        "customer": name,
        "address": {"street": street, "city": city},
        "items": [{"product": item, "quantity": many, "unit": unit} for many, unit, item in lines],
        "due": {"day": day, "month": MONTHS[month]},
        "urgent": "urgent" in extra,
        "remark": extra.strip() or None,
    }
    turns = [("user", f"Write this order as JSON.\n{asked}{extra}"), ("assistant", json.dumps(answer))]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    asked.out.write_text("".join(json.dumps(row(draw)) + "\n" for _ in range(asked.rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
