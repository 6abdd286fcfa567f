// What edgekit-run can be told to do. Each verb gets the words after it and throws Failure, or HelpAsked.
#pragma once

namespace edgekit::runner {

void generate(int count, char** words);
void bench(int count, char** words);
void calibrate(int count, char** words);
void probe(int count, char** words);
void logits(int count, char** words);
void tokenize(int count, char** words);
void detokenize(int count, char** words);
void info(int count, char** words);
void verify(int count, char** words);
void cpu(int count, char** words);

// Does what the words of the command line say, the program's name not among them, or shows what they may be.
void run_verb(int count, char** words);

}  // namespace edgekit::runner
