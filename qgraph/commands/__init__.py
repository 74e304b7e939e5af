"""What a user asks for, a file each: freeze, convert, simulate, evaluate, compare, inspect, and what they share."""
