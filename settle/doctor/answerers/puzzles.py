"""Questions that make a model think before it answers. Written for settle."""

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
