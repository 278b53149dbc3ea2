using LanguageModel.Commands;

return CommandLine.Run(args);
