using Benchmarks.Commands;

return CommandLine.Run(args);
