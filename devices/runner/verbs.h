// What edgekit-run can be told to do. Each gets the words after the verb and throws Failure.
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

}  // namespace edgekit::runner
